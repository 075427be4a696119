"""The copy of a parent in a run folder, from which a run is resumed when the parent has moved or changed."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from lora_chat.config.recipe import Recipe
from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.models.adapter import validate_adapter_config, write_stored_adapter
from lora_chat.models.adapter_files import IDENTITY_NAME, TEMPLATE_NAME, is_adapter_folder, read_adapter
from lora_chat.models.identity import Identity
from lora_chat.pipeline.parent import Parent, ParentRecord, digest_weights, find_parent
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.bounded_files import MEDIUM_FILE_BYTES, read_bytes
from lora_chat.system.user_path import expand_user_path

logger = logging.getLogger(__name__)

_RECORD_NAME = "parent.json"


def open_parent(recipe: Recipe, earlier: RunFolder | None) -> Parent | None:
    """Return the parent of a recipe; None if its adapter begins new.

    A run that is resumed has its own copy, which is used if the parent is gone. Raises the errors of `find_parent`.
    """
    start = recipe.adapter.start
    if start is None:
        return None
    how = recipe.adapter.stack or "start"
    copy = read_parent_copy(earlier) if earlier is not None else None
    if (
        copy is not None
        and earlier is not None
        and _is_start_of(earlier, start)
        and not expand_user_path(start, "adapter.start: ").exists()
    ):
        logger.info(f"{start} is not on this machine under that name: the run continues with its own copy of it.")
        if copy.record.how != how:
            raise IntegrityError(f"{earlier and earlier.path} has another value of adapter.stack than the recipe.")
        return copy
    base = recipe.base if "name" in recipe.base.model_fields_set else None
    return find_parent(start, how, base, exclude=earlier.path if earlier else None)


def is_template_accepted(run: RunFolder | None, parent: Parent) -> bool:
    """Return whether a run keeps a copy of a parent with the same chat template, which its user has accepted."""
    copy = read_parent_copy(run) if run is not None else None
    return copy is not None and (copy.record.adapter, copy.stored.template) == (
        parent.record.adapter,
        parent.stored.template,
    )


def _is_start_of(run: RunFolder, start: str) -> bool:
    """Return whether a run began with this text in `adapter.start`, whose relative path is absolute while it exists."""
    recorded, parts = run.read_plan().adapter.start, Path(start).parts
    return recorded is not None and Path(recorded).parts[-len(parts) :] == parts


def read_parent_copy(run: RunFolder) -> Parent | None:
    """Return the parent that a run keeps; None if it has none. Raises IntegrityError if the copy is damaged."""
    if not is_adapter_folder(run.parent):
        return None
    path = run.parent / _RECORD_NAME
    try:
        record = ParentRecord.model_validate_json(read_bytes(path, MEDIUM_FILE_BYTES))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} is missing or damaged: it is no parent that `sft` writes.") from error
    stored = read_adapter(run.parent)
    if digest_weights(stored) != record.adapter:
        raise IntegrityError(f"{run.parent} is damaged: its weights do not have the recorded digest.")
    held_out = RunFolder(run.parent)
    has_dialogues = any(path.is_file() for path in held_out.held_out_files)
    return Parent(stored, validate_adapter_config(stored), record, held_out if has_dialogues else None)


def keep_parent(run: RunFolder, parent: Parent) -> Parent:
    """Copy a parent with its held-out data into a run, unless the run has it, and return the copy."""
    try:
        copy = read_parent_copy(run)
    except LoraChatError:
        copy = None  # it is written again
    if copy is not None and copy.record == parent.record:
        return copy
    shutil.rmtree(run.parent, ignore_errors=True)
    with atomic_folder(run.parent, "the copy of the parent") as folder:
        write_stored_adapter(parent.stored, folder)
        if parent.stored.identity is not None:
            (folder / IDENTITY_NAME).write_text(parent.stored.identity.model_dump_json(indent=2) + "\n")
        if parent.stored.template is not None:
            (folder / TEMPLATE_NAME).write_text(parent.stored.template, encoding="utf-8")
        (folder / _RECORD_NAME).write_text(json.dumps(parent.record.model_dump(mode="json"), indent=2) + "\n")
        for path in _list_held_out(parent.held_out):
            shutil.copyfile(path, folder / path.name)
    copy = read_parent_copy(run)
    if copy is None or copy.record != parent.record:
        raise IntegrityError(f"{parent.name} has changed while it was read. Fix: run the command again.")
    return copy


def keep_lineage(run: RunFolder, parent: Parent | None, base: Identity) -> Parent | None:
    """Keep a parent and the lineage of its child in a run, and return the copy of the parent.

    `base` is the identity of the parent's base. Without a parent, those of an earlier recipe are deleted.
    """
    if parent is None:
        if run.parent.exists() or run.lineage.exists():
            shutil.rmtree(run.parent, ignore_errors=True)
            run.delete(run.lineage)
        return None
    copy = keep_parent(run, parent)
    lineage = [entry.model_dump(mode="json") for entry in copy.make_lineage(base)]
    run.write_json(run.lineage, {"lineage": lineage})
    return copy


def _list_held_out(run: RunFolder | None) -> Iterator[Path]:
    """Yield the files of held-out data and of training digests in a folder."""
    for path in (*run.held_out_files, run.questions, run.training_digests) if run else ():
        if path.is_file():
            yield path
