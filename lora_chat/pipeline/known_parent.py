"""The parent of an existing adapter: the copy in its run, or an adapter that the user names, compared by digest."""

from lora_chat.config.recipe import BaseSection
from lora_chat.errors import IntegrityError, UsageError
from lora_chat.pipeline.open_adapter import OpenAdapter
from lora_chat.pipeline.parent import Parent, digest_config, find_parent, read_lineage, with_made_by_user
from lora_chat.pipeline.parent_copy import read_parent_copy
from lora_chat.sharing.lineage import Lineage


def read_lineage_of(opened: OpenAdapter) -> Lineage | None:
    """Return the lineage of a run or a parcel; None if its adapter began new, or if nothing states it."""
    if opened.parcel is not None:
        return opened.parcel.receipt.lineage
    return read_lineage(opened.run) if opened.run is not None else None


def find_known_parent(opened: OpenAdapter, source: str | None) -> Parent | None:
    """Return the parent of an adapter: the one that the user names, or the copy in its run.

    Raises UsageError if the adapter has no parent, IntegrityError if the lineage names another one.
    """
    lineage = read_lineage_of(opened)
    if lineage is None:
        if source is not None:
            raise UsageError(f"--parent: {opened.name} has no lineage, so it names no parent. Fix: leave --parent out.")
        return None
    nearest, identity = lineage[0], opened.adapter.stored.identity
    if source is not None:
        section = BaseSection(name=opened.adapter.base.name) if nearest.how == "start" else None
        parent = find_parent(source, nearest.how, section)
    elif opened.run is not None and (copy := read_parent_copy(opened.run)) is not None:
        parent = with_made_by_user(copy, made_by_user=opened.made_by_user)
    else:
        return None
    stated = (nearest.adapter, nearest.config)
    base = parent.stored.identity or identity
    if base is None or stated != (parent.record.adapter, digest_config(parent.settings, base)):
        raise IntegrityError(f"{parent.name} is not the parent of {opened.name}, whose lineage names {nearest.name}.")
    return parent
