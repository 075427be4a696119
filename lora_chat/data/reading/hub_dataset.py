"""Find the files of a split of a hub data set at one commit; code and pickles are never loaded."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lora_chat.data.reading.hub_splits import HubRepository, format_names
from lora_chat.data.reading.streamed_file import DataFile, StreamedFile
from lora_chat.errors import DataError, LoraChatError, UnavailableError
from lora_chat.system.atomic_write import write_text_atomically
from lora_chat.system.bounded_files import read_json_object
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.hub_answers import check_file_name, check_size, is_commit_hash
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
_MAX_CARD_BYTES = 8_000_000


@dataclass(frozen=True)
class HubFiles:
    """The files of one split in the hub's cache, in the order of the split."""

    commit: str
    paths: tuple[DataFile, ...]


class _HubUnreachableError(UnavailableError):
    """The hub gave no answer, so an earlier download is used if there is one."""


def find_hub_files(
    name: str, split: str, subset: str | None, revision: str | None, *, streaming: bool = False
) -> HubFiles:
    """Return the files of a split, downloaded if needed; a branch means its newest commit if the hub answers.

    With `streaming`, the files are only listed, and read when their rows are.
    Raises DataError for an unknown split or subset or an unsupported kind of file, and UnavailableError for a data set
    that cannot be downloaded.
    """
    key = hashlib.sha256(json.dumps([name, split, subset, revision, *["streaming"] * streaming]).encode()).hexdigest()
    note = cache_dir("hub") / f"{key[:32]}.json"
    cached = _read_listing(name, note) if streaming else _read_note(name, note)
    if cached and cached.commit == revision:
        return cached
    try:
        with _convert_hub_errors(name, revision):
            commit = find_commit(name, revision, "dataset")
            if cached and cached.commit == commit:
                return cached
            remote_files = list_files(name, commit, "dataset")
            card = _read_card(name, commit, remote_files)
        files, ignored_files = HubRepository(name, remote_files, card).choose_files(split, subset)
        if ignored_files:
            logger.info(f"Ignored files of {name}, of another kind than {files[0]}: {format_names(ignored_files)}")
        listing = {file: remote_files[file] for file in files}
        size = sum(remote_file.size for remote_file in listing.values()) / 1e6
        if streaming:
            logger.info(f"Streaming {name} from the hub: {split}, {format_names(files, 3)} ({size:.1f} MB)")
            return _keep_listing(name, commit, listing, note)
        logger.info(f"Downloading {name} from the hub: {split}, {format_names(files, 3)} ({size:.1f} MB)")
        with _convert_hub_errors(name, revision):
            return _download(name, commit, listing, note)
    except _HubUnreachableError:
        if not cached:
            raise
        known = "listed" if streaming else "downloaded"
        logger.info(f"The hub cannot be reached: using {name} as last {known}, commit {cached.commit}")
        return cached


@contextmanager
def _convert_hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Raise the errors of the hub client as errors that name the data set and the fix."""
    try:
        yield
    except HubFailureError as error:
        if error.reason == "name":
            raise UnavailableError(f"{name} is not a valid name of a data set on the hub.") from error
        if error.reason == "revision":
            raise UnavailableError(f"The data set {name} has no revision {revision}.") from error
        if error.reason == "missing":
            raise UnavailableError(
                f"The hub has no data set {name}, or it requires a login.\nFix: check the name; "
                "for a private or gated data set accept its terms on its page and set HF_TOKEN."
            ) from error
        raise _HubUnreachableError(
            f"The data set {name} is incomplete on this machine and the hub cannot be reached ({error.what}).\n"
            "Fix: go online and start again (complete files are kept), or name local files."
        ) from error


def _read_card(name: str, commit: str, files: Mapping[str, RemoteFile]) -> dict[str, object]:
    """Return the YAML header of the data set's card; empty without a card."""
    if _CARD_NAME not in files:
        return {}
    if files[_CARD_NAME].size > _MAX_CARD_BYTES:
        raise DataError(
            f"The card of the data set {name} has {files[_CARD_NAME].size:,} bytes; the limit is {_MAX_CARD_BYTES:,}."
        )
    path = download_files(name, commit, commit, {_CARD_NAME: files[_CARD_NAME]}, "dataset") / _CARD_NAME
    try:
        return read_front_matter(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"The card of the data set {name} is not UTF-8 text.") from error
    except ValueError as error:
        raise DataError(f"The card of the data set {name} does not begin with valid YAML: {error}.") from error


def _download(name: str, commit: str, files: Mapping[str, RemoteFile], note: Path) -> HubFiles:
    """Download files and write a note with their commit and sizes."""
    folder = download_files(name, commit, commit, files, "dataset")
    sizes = {file: remote_file.size for file, remote_file in files.items()}
    with suppress(OSError, LoraChatError):  # without the note, the next run asks the hub again
        write_text_atomically(note, json.dumps({"name": name, "commit": commit, "files": sizes}), "a note")
    return HubFiles(commit, tuple(folder / file for file in files))


def _keep_listing(name: str, commit: str, files: Mapping[str, RemoteFile], note: Path) -> HubFiles:
    """Return files that are streamed, and write a note with their commit, sizes and digests."""
    sizes = {file: [remote_file.size, remote_file.sha256] for file, remote_file in files.items()}
    with suppress(OSError, LoraChatError):  # without the note, the next run asks the hub again
        write_text_atomically(note, json.dumps({"name": name, "commit": commit, "files": sizes}), "a note")
    return _make_streamed(name, commit, files)


def _make_streamed(name: str, commit: str, files: Mapping[str, RemoteFile]) -> HubFiles:
    """Return files that are streamed."""
    return HubFiles(commit, tuple(StreamedFile(name, commit, file, f.size, f.sha256) for file, f in files.items()))


def _read_listing(name: str, note: Path) -> HubFiles | None:
    """Return the files of the last listing of a split that is streamed."""
    with suppress(OSError, ValueError, KeyError, TypeError, LoraChatError):
        note_content = read_json_object(note)
        files = {
            check_file_name(file): RemoteFile(check_size(size, file), sha256)
            for file, (size, sha256) in note_content["files"].items()
        }
        if is_commit_hash(note_content["commit"]) and files:
            return _make_streamed(name, note_content["commit"], files)
    return None


def _read_note(name: str, note: Path) -> HubFiles | None:
    """Return the files of the last download, if all of them are still in the hub's cache."""
    with suppress(OSError, ValueError, KeyError, TypeError, LoraChatError):
        note_content = read_json_object(note)
        files = note_content["files"]
        if not is_commit_hash(note_content["commit"]) or not isinstance(files, dict) or not files:
            return None
        paths = tuple(filter(None, (find_cached_file(name, file, note_content["commit"], "dataset") for file in files)))
        if [path.stat().st_size for path in paths] == [*files.values()]:
            return HubFiles(note_content["commit"], paths)
    return None
