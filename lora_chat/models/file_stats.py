"""Marks of a base's files, compared after loading: what was checked must be what was loaded."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lora_chat.errors import IntegrityError
from lora_chat.models.weight_files import SAFE_WEIGHTS_INDEX_NAME, list_shards
from lora_chat.system.sanitize import sanitize_line

FileStats = Mapping[str, tuple[int, ...]]

_SUFFIXES = {".json", ".safetensors", ".jinja", ".model", ".bin", ".spm", ".bpe", ".vocab", ".merges", ".tiktoken"}
_TEXT_NAMES = {"vocab.txt", "merges.txt"}


def read_file_stats(folder: Path) -> FileStats:
    """Return the inode, size and times of every file that loading a base may open; a missing folder has none.

    A later change in a file always shows: no program can set the time of the last change (`st_ctime`) back. Changes
    made through a memory map that was opened before do not show.
    """
    paths = []
    with suppress(OSError):
        paths = [path for path in folder.iterdir() if path.suffix in _SUFFIXES or path.name in _TEXT_NAMES]
    paths += (folder / "additional_chat_templates").glob("*.jinja")
    with suppress(IntegrityError):  # a damaged index is told about where weights are looked for
        paths += (
            [folder / name for name in list_shards(folder / SAFE_WEIGHTS_INDEX_NAME)]
            if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file()
            else []
        )
    marks = {}
    for path in paths:
        with suppress(OSError):
            marks[path.relative_to(folder).as_posix()] = _stat_key(path.stat())
    return marks


def check_unchanged(folder: Path, before: FileStats) -> None:
    """Raise IntegrityError naming a file that appeared, disappeared or changed since the marks were made."""
    now = read_file_stats(folder)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        raise IntegrityError(
            f"{sanitize_line(changed[0], 100)} in the base {folder} changed while the base was read, so what was "
            f"checked may "
            "not be what was loaded.\nFix: run the command again while no other program writes into that folder."
        )


def _stat_key(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
