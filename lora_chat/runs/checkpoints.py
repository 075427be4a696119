"""Checkpoints that count only when they are whole: every file synced, then vouched for by a manifest written last.

Trainer finds its own by the highest number in a folder's name, synced or not, damaged or not.
"""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.system.atomic_write import atomic_file, fsync_path, is_temporary_file
from lora_chat.system.bounded_files import MAX_LOG_BYTES, MEDIUM_FILE_BYTES, read_json, read_json_object
from lora_chat.system.hashing import digest_file
from lora_chat.system.regular_files import describe_file_type, open_regular_file
from lora_chat.system.user_key import is_signed, sign

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
_SIGNATURE_PURPOSE = "checkpoint 1"
_DAMAGED_NAME_FORMAT = "damaged-{}-{}"
_COMMITTED_MARKER = "committed"
"""An empty file beside the checkpoints, once one was whole: without it, none was lost."""


class DamagedCheckpointError(Exception):
    """A checkpoint is not what its manifest says; the text says what differs."""


@dataclass(frozen=True)
class CommittedCheckpoint:
    """A checkpoint that is whole."""

    folder: Path
    step: int
    """Optimizer steps that were done."""
    identity: Mapping[str, Any]
    """What the run was, field by field."""
    signed_by_user: bool = False
    """Whether this user's key vouches for it."""


@dataclass(frozen=True)
class DamagedCheckpoint:
    """A checkpoint that is not whole."""

    folder: Path
    reason: str


def commit_checkpoint(folder: Path, identity: Mapping[str, Any]) -> CommittedCheckpoint:
    """Make a written checkpoint count. Raises OSError; then it does not."""
    step = _parse_step(folder)
    if step is None:
        raise ValueError(f"{folder.name} is not a checkpoint's name")
    files = []
    for path in _list_files(folder):
        fsync_path(path)
        files.append(
            {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": digest_file(path)}
        )
    manifest: dict[str, Any] = {"step": step, "identity": dict(identity), "files": files}
    for inner in sorted({folder, *(path.parent for path in _list_files(folder))}):
        fsync_path(inner)
    own = _write_signed(folder, manifest)
    fsync_path(folder.parent)
    if not has_committed_checkpoint(folder.parent):
        os.close(open_regular_file(folder.parent / _COMMITTED_MARKER, os.O_WRONLY | os.O_CREAT))
        fsync_path(folder.parent)
        fsync_path(folder.parent.parent)
    return CommittedCheckpoint(folder, step, identity, own)


def sign_checkpoint(checkpoint: CommittedCheckpoint) -> CommittedCheckpoint:
    """Vouch with this user's key for a checkpoint that was verified, if that is possible."""
    manifest = {key: value for key, value in _read_manifest(checkpoint.folder).items() if key not in ("mac", "sha256")}
    return replace(checkpoint, signed_by_user=_write_signed(checkpoint.folder, manifest))


def _write_signed(folder: Path, manifest: dict[str, Any]) -> bool:
    """Write a manifest; without a key of the user it vouches only for being whole. Returns whether there was one."""
    with suppress(OSError, LoraChatError):
        manifest["mac"] = sign(_SIGNATURE_PURPOSE, _digest_manifest(manifest).encode("ascii"))
    manifest["sha256"] = _digest_manifest(manifest)
    with atomic_file(folder / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1, sort_keys=True).encode("utf-8"))
    return "mac" in manifest


def _pop_and_check_signature(manifest: dict[str, Any]) -> bool:
    """Whether this user's key vouches for a manifest without its own digest; takes out its mark."""
    mark = manifest.pop("mac", None)
    with suppress(OSError, LoraChatError):
        content = _digest_manifest(manifest).encode("ascii")
        return isinstance(mark, str) and mark.isascii() and is_signed(_SIGNATURE_PURPOSE, content, mark)
    return False


def verify_checkpoint(folder: Path) -> CommittedCheckpoint:
    """Read every byte of a checkpoint; raises DamagedCheckpointError."""
    try:
        manifest = _read_manifest(folder)
        step, identity = manifest["step"], manifest["identity"]
        promised = {str(entry["path"]): (entry["size"], entry["sha256"]) for entry in manifest["files"]}
        digest_matches = manifest.pop("sha256") == _digest_manifest(manifest)
        own = _pop_and_check_signature(manifest)
    except FileNotFoundError:
        raise DamagedCheckpointError("it was not finished") from None
    except (OSError, IntegrityError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"its manifest cannot be read ({type(error).__name__})") from error
    if not digest_matches or not isinstance(identity, dict):
        raise DamagedCheckpointError("its manifest is damaged")
    if step != _parse_step(folder):
        raise DamagedCheckpointError(f"it is that of step {step}, renamed")
    found = {path.relative_to(folder).as_posix(): path for path in _list_files(folder)}
    if special := sorted(name for name, path in found.items() if not stat.S_ISREG(path.lstat().st_mode)):
        raise DamagedCheckpointError(
            f"{special[0]} is {describe_file_type(found[special[0]].lstat().st_mode)}, not a regular file"
        )
    found.pop(MANIFEST, None)
    if missing := sorted(promised.keys() - found.keys()):
        raise DamagedCheckpointError(f"{missing[0]} is missing")
    if foreign := sorted(found.keys() - promised.keys()):
        raise DamagedCheckpointError(f"{foreign[0]} does not belong to it")
    for name, path in sorted(found.items()):
        size, digest = promised[name]
        try:
            same = path.stat().st_size == size and digest_file(path) == digest
        except OSError as error:
            raise DamagedCheckpointError(f"{name} cannot be read ({error.strerror})") from error
        if not same:
            raise DamagedCheckpointError(f"{name} is damaged")
    _check_trainer_state(folder / TRAINER_STATE)
    return CommittedCheckpoint(folder, step, identity, own)


def _read_manifest(folder: Path) -> Any:
    return read_json(folder / MANIFEST, MEDIUM_FILE_BYTES)


def _check_trainer_state(path: Path) -> None:
    """Raise DamagedCheckpointError for a trainer's state that Transformers could not read in bounded time and depth."""
    if path.exists():
        try:
            read_json_object(path, MAX_LOG_BYTES)
        except (OSError, IntegrityError) as error:
            raise DamagedCheckpointError(str(error)) from error


def find_newest_checkpoint(parent: Path) -> tuple[CommittedCheckpoint | None, Sequence[DamagedCheckpoint]]:
    """The newest checkpoint that is whole, and the newer ones that are not, each with the reason."""
    aside: list[DamagedCheckpoint] = []
    for folder in reversed(_list_checkpoints(parent)):
        try:
            return verify_checkpoint(folder), aside
        except DamagedCheckpointError as error:
            aside.append(DamagedCheckpoint(folder, str(error)))
    return None, aside


def find_newest_step(parent: Path) -> int | None:
    """The step of the newest checkpoint that was finished; its bytes are not read."""
    steps = [_parse_step(folder) for folder in _list_checkpoints(parent) if (folder / MANIFEST).is_file()]
    return steps[-1] if steps else None


def has_committed_checkpoint(parent: Path) -> bool:
    """Whether any checkpoint was ever whole."""
    return (parent / _COMMITTED_MARKER).exists()


def move_damaged_aside(damaged: Sequence[DamagedCheckpoint]) -> None:
    """Make room for the same steps: rename what was damaged later, delete what was never finished."""
    for checkpoint in damaged:
        if not (checkpoint.folder / MANIFEST).exists():
            shutil.rmtree(checkpoint.folder)
            continue
        step, number = _parse_step(checkpoint.folder), 1
        while (place := checkpoint.folder.with_name(_DAMAGED_NAME_FORMAT.format(step, number))).exists():
            number += 1
        checkpoint.folder.rename(place)


def prune_checkpoints(parent: Path, keep: int) -> None:
    """Delete all but the newest `keep` that are finished; only after a newer one was committed."""
    checkpoints = _list_checkpoints(parent)
    finished = [folder for folder in checkpoints if (folder / MANIFEST).is_file()]
    kept = finished[-max(2, keep) :]
    for folder in checkpoints[: checkpoints.index(kept[0])] if kept else []:
        (folder / MANIFEST).unlink(missing_ok=True)  # what is half deleted must not count
        fsync_path(folder)
        shutil.rmtree(folder)


def _list_checkpoints(parent: Path) -> list[Path]:
    """All folders of checkpoints, by step."""
    if not parent.is_dir():
        return []
    found = [(step, path) for path in parent.iterdir() if _is_folder(path) and (step := _parse_step(path)) is not None]
    return [path for _, path in sorted(found)]


def _parse_step(folder: Path) -> int | None:
    match = _CHECKPOINT_NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def _list_files(folder: Path) -> list[Path]:
    """Everything in a checkpoint that is no folder, links to folders included."""
    return sorted(path for path in folder.rglob("*") if not _is_folder(path) and not is_temporary_file(path))


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _digest_manifest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
