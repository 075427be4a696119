"""Old checkpoints of finished runs: everything but the newest complete one, from which a run can be trained longer."""

import re
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from lora_chat.errors import IntegrityError
from lora_chat.runs.checkpoints import MANIFEST, find_newest_checkpoint
from lora_chat.system.atomic_write import fsync_path

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})")
_DAMAGED = re.compile(r"damaged-\d{1,15}-\d{1,15}")


def list_old_checkpoints(parent: Path) -> list[Path]:
    """Return the checkpoints of a finished run that nothing needs: older, unfinished and damaged ones.

    Files are not read, so `delete_old_checkpoints` looks again.
    """
    folders = [path for path in _list_folders(parent) if _CHECKPOINT.fullmatch(path.name)]
    complete = [path for path in folders if (path / MANIFEST).is_file()]
    newest = max(complete, key=_parse_step, default=None)
    if newest is None:
        return []
    damaged = [path for path in _list_folders(parent) if _DAMAGED.fullmatch(path.name)]
    return [path for path in folders if path != newest] + damaged


def delete_old_checkpoints(parent: Path, checkpoints: Sequence[Path]) -> None:
    """Delete listed checkpoints. Raise IntegrityError if the newest one is damaged, because an older one is needed."""
    newest, _ = find_newest_checkpoint(parent)
    if newest is None or newest.folder in checkpoints:
        raise IntegrityError(f"The newest checkpoint in {parent} is damaged, so older ones are kept.")
    for folder in checkpoints:
        (folder / MANIFEST).unlink(missing_ok=True)  # a partly deleted checkpoint must not be used
        fsync_path(folder)
        shutil.rmtree(folder)


def _list_folders(parent: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name; links are left out."""
    try:
        return [path for path in sorted(parent.iterdir()) if stat.S_ISDIR(path.lstat().st_mode)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _parse_step(folder: Path) -> int:
    match = _CHECKPOINT.fullmatch(folder.name)
    return int(match[1]) if match else -1
