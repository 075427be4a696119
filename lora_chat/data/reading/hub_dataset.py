"""A split of a data set on the Hugging Face hub: its files at one commit, downloaded once, never code or pickles."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_chat.data.reading.hub_splits import HubRepository, format_names
from lora_chat.errors import DataError, LoraChatError, UnavailableError
from lora_chat.system.atomic_write import write_text_atomically
from lora_chat.system.bounded_files import read_json_object
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.hub_answers import is_commit_hash
from lora_chat.system.hub_client import (
    HubFailureError,
    RemoteFile,
    download_files,
    find_cached_file,
    find_commit,
    list_files,
)
from lora_chat.system.strict_yaml import read_front_matter

logger = logging.getLogger(__name__)

_CARD_NAME = "README.md"
_MAX_CARD_BYTES = 8_000_000  # bytes


@dataclass(frozen=True)
class HubFiles:
    """The files of one split, in the hub's cache and in the order in which the split has them."""

    commit: str
    paths: tuple[Path, ...]


class _HubUnreachableError(UnavailableError):
    """The hub gave no answer: what was downloaded before may do."""


def find_hub_files(name: str, split: str, subset: str | None, revision: str | None) -> HubFiles:
    """The files of a split, downloaded if they are not here; the newest commit of a branch when the hub answers.

    Raises DataError for a split, subset or kind of file that cannot be had, UnavailableError for a data set.
    """
    key = hashlib.sha256(json.dumps([name, split, subset, revision]).encode()).hexdigest()
    note = cache_dir("hub") / f"{key[:32]}.json"
    known = _read_note(name, note)
    if known and known.commit == revision:
        return known
    try:
        with _convert_hub_errors(name, revision):
            commit = find_commit(name, revision, "dataset")
            if known and known.commit == commit:
                return known
            remote_files = list_files(name, commit, "dataset")
            card = _read_card(name, commit, remote_files)
        files, left = HubRepository(name, remote_files, card).choose_files(split, subset)
        if left:
            logger.info(f"Left out of {name}, of another kind than {files[0]}: {format_names(left)}")
        size = sum(remote_files[file].size for file in files) / 1e6
        logger.info(f"Downloading {name} from the hub: {split}, {format_names(files, 3)} ({size:.1f} MB)")
        with _convert_hub_errors(name, revision):
            return _download(name, commit, {file: remote_files[file] for file in files}, note)
    except _HubUnreachableError:
        if not known:
            raise
        logger.info(f"The hub cannot be reached: using {name} as last downloaded, commit {known.commit}")
        return known


@contextmanager
def _convert_hub_errors(name: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except HubFailureError as error:
        if error.reason == "name":
            raise UnavailableError(f"{name} cannot be the name of a data set on the hub.") from error
        if error.reason == "revision":
            raise UnavailableError(f"The data set {name} has no revision {revision}.") from error
        if error.reason == "missing":
            raise UnavailableError(
                f"The hub has no data set {name}, or it asks for a login.\nCheck the name; "
                "for a private or gated data set accept its terms on its page and set HF_TOKEN."
            ) from error
        raise _HubUnreachableError(
            f"The data set {name} is not whole on this machine and the hub cannot be reached ({error.what}).\n"
            "Go online and start again (files that are complete stay), or name local files."
        ) from error


def _read_card(name: str, commit: str, files: Mapping[str, RemoteFile]) -> dict[str, Any]:
    if _CARD_NAME not in files:
        return {}
    if files[_CARD_NAME].size > _MAX_CARD_BYTES:
        raise DataError(
            f"The card of the data set {name} has {files[_CARD_NAME].size:,} bytes; {_MAX_CARD_BYTES:,} may be."
        )
    path = download_files(name, commit, commit, {_CARD_NAME: files[_CARD_NAME]}, "dataset") / _CARD_NAME
    try:
        return read_front_matter(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"The card of the data set {name} is not UTF-8 text.") from error
    except ValueError as error:
        raise DataError(f"The card of the data set {name} does not begin with valid YAML: {error}.") from error


def _download(name: str, commit: str, files: Mapping[str, RemoteFile], note: Path) -> HubFiles:
    folder = download_files(name, commit, commit, files, "dataset")
    sizes = {file: about.size for file, about in files.items()}
    with suppress(OSError, LoraChatError):  # only a note: without it the hub is asked again next time
        write_text_atomically(note, json.dumps({"name": name, "commit": commit, "files": sizes}), "a note")
    return HubFiles(commit, tuple(folder / file for file in files))


def _read_note(name: str, note: Path) -> HubFiles | None:
    """What was found the last time, if all of it is still in the hub's cache."""
    with suppress(OSError, ValueError, KeyError, TypeError, LoraChatError):
        note_content = read_json_object(note)
        files = note_content["files"]
        if not is_commit_hash(note_content["commit"]) or not isinstance(files, dict) or not files:
            return None
        paths = tuple(filter(None, (find_cached_file(name, file, note_content["commit"], "dataset") for file in files)))
        if [path.stat().st_size for path in paths] == [*files.values()]:
            return HubFiles(note_content["commit"], paths)
    return None
