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
from lora_chat.system.atomic_write import is_part, replacing, sync
from lora_chat.system.bounded_files import LARGEST_LOG, MIDDLE, read_json, read_json_object
from lora_chat.system.hashing import digest_file
from lora_chat.system.regular_files import kind_of, open_regular
from lora_chat.system.user_key import is_signed, sign

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_PURPOSE = "checkpoint 1"
_ASIDE = "damaged-{}-{}"
_EVER = "committed"
"""An empty file beside the checkpoints, once one was whole: without it, none was lost."""


class DamagedError(Exception):
    """A checkpoint is not what its manifest says; the text says what differs."""


@dataclass(frozen=True)
class Commit:
    """A checkpoint that is whole."""

    folder: Path
    step: int
    """Optimizer steps that were done."""
    identity: Mapping[str, Any]
    """What the run was, field by field."""
    own: bool = False
    """Whether this user's key vouches for it."""


@dataclass(frozen=True)
class SetAside:
    """A checkpoint that is not whole."""

    folder: Path
    reason: str


def commit(folder: Path, identity: Mapping[str, Any]) -> Commit:
    """Make a written checkpoint count. Raises OSError; then it does not."""
    step = _step_of(folder)
    if step is None:
        raise ValueError(f"{folder.name} is not a checkpoint's name")
    files = []
    for path in _files(folder):
        sync(path)
        files.append(
            {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": digest_file(path)}
        )
    manifest: dict[str, Any] = {"step": step, "identity": dict(identity), "files": files}
    for inner in sorted({folder, *(path.parent for path in _files(folder))}):
        sync(inner)
    own = _write_signed(folder, manifest)
    sync(folder.parent)
    if not was_committed(folder.parent):
        os.close(open_regular(folder.parent / _EVER, os.O_WRONLY | os.O_CREAT))
        sync(folder.parent)
        sync(folder.parent.parent)
    return Commit(folder, step, identity, own)


def adopt(one: Commit) -> Commit:
    """Vouch with this user's key for a checkpoint that was verified, if that is possible."""
    manifest = {key: value for key, value in _read_manifest(one.folder).items() if key not in ("mac", "sha256")}
    return replace(one, own=_write_signed(one.folder, manifest))


def _write_signed(folder: Path, manifest: dict[str, Any]) -> bool:
    """Write a manifest; without a key of the user it vouches only for being whole. Returns whether there was one."""
    with suppress(OSError, LoraChatError):
        manifest["mac"] = sign(_PURPOSE, _own_digest(manifest).encode("ascii"))
    manifest["sha256"] = _own_digest(manifest)
    with replacing(folder / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1, sort_keys=True).encode("utf-8"))
    return "mac" in manifest


def _is_own(manifest: dict[str, Any]) -> bool:
    """Whether this user's key vouches for a manifest without its own digest; takes out its mark."""
    mark = manifest.pop("mac", None)
    with suppress(OSError, LoraChatError):
        content = _own_digest(manifest).encode("ascii")
        return isinstance(mark, str) and mark.isascii() and is_signed(_PURPOSE, content, mark)
    return False


def verify(folder: Path) -> Commit:
    """Read every byte of a checkpoint; raises DamagedError."""
    try:
        manifest = _read_manifest(folder)
        step, identity = manifest["step"], manifest["identity"]
        promised = {str(entry["path"]): (entry["size"], entry["sha256"]) for entry in manifest["files"]}
        whole = manifest.pop("sha256") == _own_digest(manifest)
        own = _is_own(manifest)
    except FileNotFoundError:
        raise DamagedError("it was not finished") from None
    except (OSError, IntegrityError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"its manifest cannot be read ({type(error).__name__})") from error
    if not whole or not isinstance(identity, dict):
        raise DamagedError("its manifest is damaged")
    if step != _step_of(folder):
        raise DamagedError(f"it is that of step {step}, renamed")
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    if special := sorted(name for name, path in found.items() if not stat.S_ISREG(path.lstat().st_mode)):
        raise DamagedError(f"{special[0]} is {kind_of(found[special[0]].lstat().st_mode)}, not a regular file")
    found.pop(MANIFEST, None)
    if missing := sorted(promised.keys() - found.keys()):
        raise DamagedError(f"{missing[0]} is missing")
    if foreign := sorted(found.keys() - promised.keys()):
        raise DamagedError(f"{foreign[0]} does not belong to it")
    for name, path in sorted(found.items()):
        size, digest = promised[name]
        try:
            same = path.stat().st_size == size and digest_file(path) == digest
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error.strerror})") from error
        if not same:
            raise DamagedError(f"{name} is damaged")
    _check_state(folder / TRAINER_STATE)
    return Commit(folder, step, identity, own)


def _read_manifest(folder: Path) -> Any:
    return read_json(folder / MANIFEST, MIDDLE)


def _check_state(path: Path) -> None:
    """Raise DamagedError for a trainer's state that Transformers could not read in bounded time and depth."""
    if path.exists():
        try:
            read_json_object(path, LARGEST_LOG)
        except (OSError, IntegrityError) as error:
            raise DamagedError(str(error)) from error


def find_newest(parent: Path) -> tuple[Commit | None, Sequence[SetAside]]:
    """The newest checkpoint that is whole, and the newer ones that are not, each with the reason."""
    aside: list[SetAside] = []
    for folder in reversed(_checkpoints(parent)):
        try:
            return verify(folder), aside
        except DamagedError as error:
            aside.append(SetAside(folder, str(error)))
    return None, aside


def newest_step(parent: Path) -> int | None:
    """The step of the newest checkpoint that was finished; its bytes are not read."""
    steps = [_step_of(folder) for folder in _checkpoints(parent) if (folder / MANIFEST).is_file()]
    return steps[-1] if steps else None


def was_committed(parent: Path) -> bool:
    """Whether any checkpoint was ever whole."""
    return (parent / _EVER).exists()


def set_aside(damaged: Sequence[SetAside]) -> None:
    """Make room for the same steps: rename what was damaged later, delete what was never finished."""
    for one in damaged:
        if not (one.folder / MANIFEST).exists():
            shutil.rmtree(one.folder)
            continue
        step, number = _step_of(one.folder), 1
        while (place := one.folder.with_name(_ASIDE.format(step, number))).exists():
            number += 1
        one.folder.rename(place)


def prune(parent: Path, keep: int) -> None:
    """Delete all but the newest `keep` that are finished; only after a newer one was committed."""
    everything = _checkpoints(parent)
    finished = [folder for folder in everything if (folder / MANIFEST).is_file()]
    kept = finished[-max(2, keep) :]
    for folder in everything[: everything.index(kept[0])] if kept else []:
        (folder / MANIFEST).unlink(missing_ok=True)  # what is half deleted must not count
        sync(folder)
        shutil.rmtree(folder)


def _checkpoints(parent: Path) -> list[Path]:
    """All folders of checkpoints, by step."""
    if not parent.is_dir():
        return []
    found = [(step, path) for path in parent.iterdir() if _is_folder(path) and (step := _step_of(path)) is not None]
    return [path for _, path in sorted(found)]


def _step_of(folder: Path) -> int | None:
    match = _CHECKPOINT.fullmatch(folder.name)
    return int(match[1]) if match else None


def _files(folder: Path) -> list[Path]:
    """Everything in a checkpoint that is no folder, links to folders included."""
    return sorted(path for path in folder.rglob("*") if not _is_folder(path) and not is_part(path))


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _own_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
