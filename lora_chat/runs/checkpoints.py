"""Checkpoints with a manifest that is written last: it lists every file, which has been synced before.

A checkpoint without a valid manifest is not used. Trainer's own search takes the highest number in a folder's name,
even if the folder is incomplete or damaged.
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
"""Name of an empty file beside the checkpoints, written after the first complete one; without it none can be lost."""


class DamagedCheckpointError(Exception):
    """A checkpoint that differs from its manifest; the text names the difference."""


@dataclass(frozen=True)
class CommittedCheckpoint:
    """A complete checkpoint."""

    folder: Path
    step: int
    """Number of optimizer steps before it."""
    identity: Mapping[str, object]
    """Fields that decide what the run trains."""
    signed_by_user: bool = False
    """Whether this user's key signed it."""


@dataclass(frozen=True)
class DamagedCheckpoint:
    """An incomplete or damaged checkpoint."""

    folder: Path
    reason: str


def commit_checkpoint(folder: Path, identity: Mapping[str, object], processes: int = 1) -> CommittedCheckpoint:
    """Sync a written checkpoint and write its manifest. Raise OSError; the checkpoint is then not used.

    The number of processes that trained it is recorded, but it is not a part of the identity.
    """
    step = _parse_step(folder)
    if step is None:
        raise ValueError(f"{folder.name} is not the name of a checkpoint")
    files = []
    for path in _list_files(folder):
        fsync_path(path)
        files.append(
            {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": digest_file(path)}
        )
    manifest: dict[str, object] = {"step": step, "identity": dict(identity), "files": files}
    if processes > 1:
        manifest["processes"] = processes
    for inner in sorted({folder, *(path.parent for path in _list_files(folder))}):
        fsync_path(inner)
    signed_by_user = _write_signed(folder, manifest)
    fsync_path(folder.parent)
    if not has_committed_checkpoint(folder.parent):
        os.close(open_regular_file(folder.parent / _COMMITTED_MARKER, os.O_WRONLY | os.O_CREAT))
        fsync_path(folder.parent)
        fsync_path(folder.parent.parent)
    return CommittedCheckpoint(folder, step, identity, signed_by_user)


def sign_checkpoint(checkpoint: CommittedCheckpoint) -> CommittedCheckpoint:
    """Sign a verified checkpoint with this user's key, if there is one."""
    manifest = {key: value for key, value in _read_manifest(checkpoint.folder).items() if key not in ("mac", "sha256")}
    return replace(checkpoint, signed_by_user=_write_signed(checkpoint.folder, manifest))


def _write_signed(folder: Path, manifest: dict[str, object]) -> bool:
    """Write a manifest, signed if the user has a key. Return whether it was signed."""
    with suppress(OSError, LoraChatError):
        manifest["mac"] = sign(_SIGNATURE_PURPOSE, _digest_manifest(manifest).encode("ascii"))
    manifest["sha256"] = _digest_manifest(manifest)
    with atomic_file(folder / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1, sort_keys=True).encode("utf-8"))
    return "mac" in manifest


def _pop_and_check_signature(manifest: dict[str, object]) -> bool:
    """Remove the signature from a manifest, whose digest is removed already. Return whether this user's key made it."""
    signature = manifest.pop("mac", None)
    with suppress(OSError, LoraChatError):
        content = _digest_manifest(manifest).encode("ascii")
        return isinstance(signature, str) and signature.isascii() and is_signed(_SIGNATURE_PURPOSE, content, signature)
    return False


def verify_checkpoint(folder: Path) -> CommittedCheckpoint:
    """Read every byte of a checkpoint and compare it with the manifest. Raise DamagedCheckpointError."""
    try:
        manifest = _read_manifest(folder)
        step, identity = manifest["step"], manifest["identity"]
        expected = {str(entry["path"]): (entry["size"], entry["sha256"]) for entry in manifest["files"]}
        digest_matches = manifest.pop("sha256") == _digest_manifest(manifest)
        signed_by_user = _pop_and_check_signature(manifest)
    except FileNotFoundError:
        raise DamagedCheckpointError("it was not finished") from None
    except (OSError, IntegrityError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"its manifest cannot be read ({type(error).__name__})") from error
    if not digest_matches or not isinstance(identity, dict):
        raise DamagedCheckpointError("its manifest is damaged")
    if step != _parse_step(folder):
        raise DamagedCheckpointError(f"its manifest belongs to step {step}")
    present = {path.relative_to(folder).as_posix(): path for path in _list_files(folder)}
    if special := sorted(name for name, path in present.items() if not stat.S_ISREG(path.lstat().st_mode)):
        raise DamagedCheckpointError(
            f"{special[0]} is {describe_file_type(present[special[0]].lstat().st_mode)}, not a regular file"
        )
    present.pop(MANIFEST, None)
    if missing := sorted(expected.keys() - present.keys()):
        raise DamagedCheckpointError(f"{missing[0]} is missing")
    if foreign := sorted(present.keys() - expected.keys()):
        raise DamagedCheckpointError(f"{foreign[0]} does not belong to it")
    for name, path in sorted(present.items()):
        size, digest = expected[name]
        try:
            same = path.stat().st_size == size and digest_file(path) == digest
        except OSError as error:
            raise DamagedCheckpointError(f"{name} cannot be read ({error.strerror})") from error
        if not same:
            raise DamagedCheckpointError(f"{name} is damaged")
    _check_trainer_state(folder / TRAINER_STATE)
    return CommittedCheckpoint(folder, step, identity, signed_by_user)


def _read_manifest(folder: Path) -> Any:
    return read_json(folder / MANIFEST, MEDIUM_FILE_BYTES)


def _check_trainer_state(path: Path) -> None:
    """Raise DamagedCheckpointError if the trainer's state is too large or too deep for Transformers to read safely."""
    if path.exists():
        try:
            read_json_object(path, MAX_LOG_BYTES)
        except (OSError, IntegrityError) as error:
            raise DamagedCheckpointError(str(error)) from error


def find_newest_checkpoint(parent: Path) -> tuple[CommittedCheckpoint | None, Sequence[DamagedCheckpoint]]:
    """Return the newest complete checkpoint, and the newer damaged ones with the reason for each."""
    damaged: list[DamagedCheckpoint] = []
    for folder in reversed(_list_checkpoints(parent)):
        try:
            return verify_checkpoint(folder), damaged
        except DamagedCheckpointError as error:
            damaged.append(DamagedCheckpoint(folder, str(error)))
    return None, damaged


def find_newest_step(parent: Path) -> int | None:
    """Return the step of the newest checkpoint that has a manifest, without reading its files."""
    steps = [_parse_step(folder) for folder in _list_checkpoints(parent) if (folder / MANIFEST).is_file()]
    return steps[-1] if steps else None


def list_checkpoint_steps(parent: Path) -> list[int]:
    """Return the steps of all checkpoints that have a manifest, without reading their files."""
    steps = ((_parse_step(folder), folder) for folder in _list_checkpoints(parent))
    return [step for step, folder in steps if step is not None and (folder / MANIFEST).is_file()]


def has_committed_checkpoint(parent: Path) -> bool:
    """Return whether a checkpoint was ever complete."""
    return (parent / _COMMITTED_MARKER).exists()


def move_damaged_aside(damaged: Sequence[DamagedCheckpoint]) -> None:
    """Rename checkpoints that were damaged later and delete unfinished ones, so that training can write those steps."""
    for checkpoint in damaged:
        if not (checkpoint.folder / MANIFEST).exists():
            shutil.rmtree(checkpoint.folder)
            continue
        step, number = _parse_step(checkpoint.folder), 1
        while (renamed := checkpoint.folder.with_name(_DAMAGED_NAME_FORMAT.format(step, number))).exists():
            number += 1
        checkpoint.folder.rename(renamed)


def prune_checkpoints(parent: Path, keep: int) -> None:
    """Delete all but the newest `keep` finished checkpoints, at least two; call it after a newer one was committed."""
    checkpoints = _list_checkpoints(parent)
    finished = [folder for folder in checkpoints if (folder / MANIFEST).is_file()]
    newest = finished[-max(2, keep) :]
    for folder in checkpoints[: checkpoints.index(newest[0])] if newest else []:
        (folder / MANIFEST).unlink(missing_ok=True)  # a partly deleted checkpoint must not be used
        fsync_path(folder)
        shutil.rmtree(folder)


def _list_checkpoints(parent: Path) -> list[Path]:
    """Return all checkpoint folders in order of their steps."""
    if not parent.is_dir():
        return []
    folders = [
        (step, path) for path in parent.iterdir() if _is_folder(path) and (step := _parse_step(path)) is not None
    ]
    return [path for _, path in sorted(folders)]


def _parse_step(folder: Path) -> int | None:
    match = _CHECKPOINT_NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def _list_files(folder: Path) -> list[Path]:
    """Return all files of a checkpoint except temporary ones; a link to a folder counts as a file."""
    return sorted(path for path in folder.rglob("*") if not _is_folder(path) and not is_temporary_file(path))


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _digest_manifest(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
