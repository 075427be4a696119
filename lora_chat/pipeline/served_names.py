"""The names by which requests choose models: THING, or NAME=THING."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_chat.errors import UsageError
from lora_chat.pipeline.admitted_model import BARE_BASE
from lora_chat.runs.run_folder import RunFolder, is_run_folder
from lora_chat.sharing.container import PARCEL_SUFFIX
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.user_path import expand_user_path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class NamedSource:
    """Something that the user wants to serve, and its name in requests."""

    name: str
    source: str


def read_named_source(text: str) -> NamedSource:
    """Return a source and its name; `NAME=THING` gives a name unless the whole text is a path.

    Without one, the name is the last part of the path, without the ending of a parcel. Raises UsageError for a name
    that requests cannot use.
    """
    name, separator, rest = text.partition("=")
    is_named = bool(separator and rest) and "/" not in name and not expand_user_path(text).exists()
    named = NamedSource(name, rest) if is_named else NamedSource(_choose_name(text), text)
    if not _NAME.fullmatch(named.name):
        raise UsageError(
            f"{sanitize_line(named.source, 300)} gives no name that requests can use: letters of ASCII, digits and "
            f"._- only, 100 at most. Fix: choose one, such as my-model={sanitize_line(named.source, 300)}."
        )
    if named.name == BARE_BASE:
        raise UsageError(
            f"The name {BARE_BASE} is that of the bare base. Fix: choose another, such as "
            f"my-{BARE_BASE}={sanitize_line(named.source, 300)}."
        )
    return named


def check_unique_names(sources: Sequence[NamedSource]) -> None:
    """Raise UsageError for two sources of one name."""
    seen: dict[str, NamedSource] = {}
    for named in sources:
        if (other := seen.setdefault(named.name, named)) is not named:
            raise UsageError(
                f"Two things have the name {named.name}: {sanitize_line(other.source, 300)} and "
                f"{sanitize_line(named.source, 300)}. Fix: give one another name, such as "
                f"{named.name[:90]}-2={sanitize_line(named.source, 300)}."
            )


def _choose_name(source: str) -> str:
    """Return the last part of a path without the ending of a parcel; for the adapter in a run, the name of the run."""
    path = expand_user_path(source)
    if path.name in ("", ".."):
        path = path.resolve()
    if path.name == RunFolder(path.parent).adapter.name and is_run_folder(path.parent):
        path = path.parent.absolute()
    return path.name.removesuffix(PARCEL_SUFFIX)


def shorten_source(source: str) -> str:
    """Return a source without the folders above it, because clients may not learn them."""
    return sanitize_line(Path(source).name or source, 200)
