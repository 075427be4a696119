"""Caches and old checkpoints: found with their sizes, and deleted so that a kill leaves nothing half deleted in use."""

import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lora_chat.errors import IntegrityError, InUseError, LoraChatError, UsageError, first_line
from lora_chat.pipeline.cache_kinds import CACHE_KINDS, CacheKind
from lora_chat.pipeline.list_runs import DEFAULT_FOLDER
from lora_chat.runs.lock import is_in_use, lock_run_folder
from lora_chat.runs.old_checkpoints import delete_old_checkpoints, list_old_checkpoints
from lora_chat.runs.run_folder import RunFolder, is_run_folder
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.file_lock import acquire_lock
from lora_chat.system.folder_size import measure_bytes, measure_last_use
from lora_chat.system.open_files import list_open_files
from lora_chat.system.received_folder import check_received_folder
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.user_path import expand_user_path

CHECKPOINTS = "checkpoints"
KIND_NAMES = (*(kind.name for kind in CACHE_KINDS if not kind.kept_because), CHECKPOINTS)
"""Kinds that can be deleted, as `--only` names them."""
_LOCK_NAME = ".lock"
_GRACE_SECONDS = 60.0
"""Time after its last use in which an entry is kept, because a program may be about to open it."""
_UNFINISHED_SECONDS = 86400.0
"""The same time for entries that begin with a dot, which are being written or were left by a killed process."""


@dataclass(frozen=True)
class CleanChoice:
    """The entries that a user wants to delete."""

    kinds: Collection[str] = KIND_NAMES
    min_age_seconds: float = 0.0
    """Shortest time since the last use of a deleted entry."""
    runs: Path | None = None
    """Folder of runs; None means `runs`, if it exists."""


@dataclass(frozen=True)
class CleanEntry:
    """A file or folder that is deleted as a whole."""

    path: Path
    size: int
    last_use: float
    kept_because: str = ""
    """Reason why it is not deleted; empty if it is."""

    def as_dict(self) -> dict[str, object]:
        """Return the entry for JSON."""
        return {"path": str(self.path), "bytes": self.size, "kept_because": self.kept_because or None}


Deleter = Callable[[Sequence[CleanEntry], Collection[Path]], Iterator[tuple[CleanEntry, str]]]
"""Function that deletes entries unless they are among the open files, and yields the others with the reason."""


@dataclass(frozen=True)
class CleanGroup:
    """All entries of one kind."""

    name: str
    folder: Path
    content: str
    comes_back: str
    entries: tuple[CleanEntry, ...]
    delete: Deleter

    @property
    def size(self) -> int:
        """Return the bytes of all entries."""
        return sum(entry.size for entry in self.entries)

    @property
    def selected(self) -> list[CleanEntry]:
        """Return the entries that are to be deleted."""
        return [entry for entry in self.entries if not entry.kept_because]

    @property
    def selected_size(self) -> int:
        """Return the bytes of the entries that are to be deleted."""
        return sum(entry.size for entry in self.selected)

    def as_dict(self, after: int) -> dict[str, object]:
        """Return the group for JSON, with the bytes that are left."""
        return {
            "kind": self.name,
            "folder": str(self.folder),
            "content": self.content,
            "comes_back": self.comes_back,
            "before_bytes": self.size,
            "selected_bytes": self.selected_size,
            "after_bytes": after,
            "entries": [entry.as_dict() for entry in self.entries],
        }


def find_cleanable(choice: CleanChoice) -> list[CleanGroup]:
    """Return everything that `clean` knows, with the reason for each entry that stays. Nothing is changed."""
    groups = []
    open_files = list_open_files(cache_dir().resolve())
    for kind in CACHE_KINDS:
        folder = kind.folder()
        entries = _list_cache(kind, folder, open_files)
        groups.append(_make_group(kind.name, folder, kind.content, kind.comes_back, entries, choice, _deleter(kind)))
    folder, entries = _list_checkpoints(choice.runs)
    groups.append(
        _make_group(
            CHECKPOINTS,
            folder,
            "old checkpoints of finished runs",
            "never; a finished run does not need them",
            entries,
            choice,
            _delete_checkpoints,
        )
    )
    return groups


def delete_selected(groups: Sequence[CleanGroup]) -> tuple[list[int], list[tuple[CleanEntry, str]]]:
    """Delete the selected entries. Return the bytes that are left of each group, and the entries that stayed.

    Programs may have begun to use an entry since it was listed, so their open files are listed again.
    """
    sizes, stayed = [], []
    open_files = list_open_files(cache_dir().resolve())
    for group in groups:
        failed = list(group.delete(group.selected, open_files)) if group.selected else []
        stayed += failed
        sizes.append(group.size - group.selected_size + sum(entry.size for entry, _ in failed))
    return sizes, stayed


def _make_group(
    name: str,
    folder: Path,
    content: str,
    comes_back: str,
    entries: Sequence[CleanEntry],
    choice: CleanChoice,
    delete: Deleter,
) -> CleanGroup:
    """Return a group in which the entries that the user did not choose have a reason to stay."""

    def decide(entry: CleanEntry) -> CleanEntry:
        if entry.kept_because:
            return entry
        if name not in choice.kinds:
            return replace(entry, kept_because="not chosen")
        age = time.time() - entry.last_use
        return replace(entry, kept_because="used later") if age < choice.min_age_seconds else entry

    return CleanGroup(name, folder, content, comes_back, tuple(map(decide, entries)), delete)


def _list_cache(kind: CacheKind, folder: Path, open_files: Collection[Path]) -> list[CleanEntry]:
    """Return the entries of a kind of cache; an entry in use, and anything behind a link, has a reason to stay."""
    try:
        mode = folder.lstat().st_mode
    except OSError:
        return []
    if not stat.S_ISDIR(mode):
        paths = [folder] if stat.S_ISREG(mode) else []
    else:
        paths = sorted(path for path in folder.iterdir() if path.name != _LOCK_NAME)
    return [_make_entry(kind, path, open_files) for path in paths]


def _make_entry(kind: CacheKind, path: Path, open_files: Collection[Path]) -> CleanEntry:
    """Return an entry of a cache with the reason why it stays, if it does."""
    size, last_use = measure_bytes(path), measure_last_use(path)
    return CleanEntry(path, size, last_use, kind.kept_because or _explain_use(path, last_use, open_files))


def _explain_use(path: Path, last_use: float, open_files: Collection[Path]) -> str:
    """Return why an entry must not be deleted now; nothing if it can be."""
    mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        return "a link or special file"
    resolved = path.resolve()
    if any(resolved == file or resolved in file.parents for file in open_files):
        return "in use"
    limit = _UNFINISHED_SECONDS if path.name.startswith(".") else _GRACE_SECONDS
    return "used just now" if time.time() - last_use < limit else ""


def _deleter(kind: CacheKind) -> Deleter:
    """Return the function that deletes entries of a kind of cache."""

    def delete(entries: Sequence[CleanEntry], open_files: Collection[Path]) -> Iterator[tuple[CleanEntry, str]]:
        folder = entries[0].path.parent
        try:
            with _locked(folder / _LOCK_NAME if kind.has_write_lock else None):
                for entry in entries:
                    reason = _delete_entry(entry, open_files)
                    if reason:
                        yield entry, reason
        except (LoraChatError, OSError) as error:
            yield from ((entry, first_line(error)) for entry in entries if os.path.lexists(entry.path))

    return delete


def _delete_entry(entry: CleanEntry, open_files: Collection[Path]) -> str:
    """Delete a file or folder, and return the reason if that was not possible.

    A folder gets another name first, because a cache that is partly deleted must not be taken for a complete one.
    """
    try:
        reason = _explain_use(entry.path, measure_last_use(entry.path), open_files)
        if reason:
            return reason
        if not stat.S_ISDIR(entry.path.lstat().st_mode):
            entry.path.unlink()
            return ""
        renamed = entry.path.with_name(f".{entry.path.name.lstrip('.')[:60]}-{secrets.token_hex(4)}")
        entry.path.rename(renamed)
        shutil.rmtree(renamed)
    except FileNotFoundError:  # another process has deleted it
        return ""
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    """Lock a file during the block. Raise InUseError if a process that writes to the cache has it."""
    if path is None:
        yield
        return
    handle = open_regular_file(path, os.O_RDWR | os.O_CREAT)
    try:
        if not acquire_lock(handle, wait=False):
            raise InUseError("in use")
        yield
    finally:
        os.close(handle)


def _list_checkpoints(runs: Path | None) -> tuple[Path, list[CleanEntry]]:
    """Return the folder of runs, and the old checkpoints of its runs. Raise UsageError for a missing folder."""
    folder = expand_user_path(runs) if runs else Path(DEFAULT_FOLDER)
    if runs and not folder.is_dir():
        raise UsageError(f"There is no folder {runs}. Fix: --runs DIR with a folder that contains runs.")
    if not folder.is_dir():
        return folder, []
    entries = []
    for path in [folder] if is_run_folder(folder) else sorted(folder.iterdir()):
        if path.is_symlink() or not is_run_folder(path):
            continue
        run = RunFolder(path)
        for checkpoint in list_old_checkpoints(run.checkpoints):
            size, last_use = measure_bytes(checkpoint), measure_last_use(checkpoint)
            entries.append(CleanEntry(checkpoint, size, last_use, _explain_run(run)))
    return folder, entries


def _explain_run(run: RunFolder) -> str:
    """Return why the checkpoints of a run stay; nothing if they can be deleted."""
    try:
        check_received_folder(run.path)
        if run.checkpoints.is_symlink():
            return "a link or special file"
        if is_in_use(run.path):
            return "in use"
    except (LoraChatError, OSError) as error:
        return first_line(error)
    has_adapter = (run.adapter / "adapter_model.safetensors").is_file()
    return "" if run.result.is_file() and has_adapter else "the run is not finished"


def _delete_checkpoints(
    entries: Sequence[CleanEntry], open_files: Collection[Path]
) -> Iterator[tuple[CleanEntry, str]]:
    """Delete old checkpoints run by run, while the run is locked, which replaces a look at open files."""
    by_run: dict[Path, list[CleanEntry]] = {}
    for entry in entries:
        by_run.setdefault(entry.path.parent.parent, []).append(entry)
    for path, old in by_run.items():
        run = RunFolder(path)
        try:
            with lock_run_folder(path):
                check_received_folder(path)
                if not run.result.is_file():
                    raise IntegrityError("the run is not finished")
                delete_old_checkpoints(run.checkpoints, [entry.path for entry in old])
        except (LoraChatError, OSError) as error:
            yield from ((entry, first_line(error)) for entry in old if os.path.lexists(entry.path))
