"""Digests of large files, remembered between commands."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from lora_chat.errors import LoraChatError
from lora_chat.system.atomic_write import write_text_whole
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.hashing import digest_file

_NAME = "digests.json"
_MOST = 2000
"""Number of digests that are remembered."""
_SETTLED = 2.0
"""Age of a change, in seconds, from which on a later change is sure to have another time."""


def digest_of(path: Path, *, read: bool = False) -> str:
    """Return a file's sha256; the one remembered for the same path, size, times and inode unless `read` is set."""
    before = path.stat()
    key = _key(path, before)
    known = _read_notes()
    if not read and key in known:
        return known[key]
    digest = digest_file(path)
    # A change that comes within the same tick of the clock leaves the times as they are.
    settled = time.time() - max(before.st_ctime, before.st_mtime) > _SETTLED and _key(path, path.stat()) == key
    kept = {other: value for other, value in known.items() if other != key} | ({key: digest} if settled else {})
    if kept != known:
        _write_notes(kept)
    return digest


def _key(path: Path, stat: os.stat_result) -> str:
    # A change sets ctime, and no program can set it back as it can mtime.
    place = f"{stat.st_dev}:{stat.st_ino}"
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{place}"


def _read_notes() -> dict[str, str]:
    try:
        known = json.loads((cache_dir() / _NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, LoraChatError):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)} if isinstance(known, dict) else {}


def _write_notes(known: dict[str, str]) -> None:
    """Remember digests; without the note a file is only read again next time."""
    newest = dict(list(known.items())[-_MOST:])
    with suppress(OSError, LoraChatError):
        write_text_whole(cache_dir() / _NAME, json.dumps(newest), "a note")
