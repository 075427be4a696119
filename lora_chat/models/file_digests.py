"""Digests of large files, remembered between commands."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from lora_chat.errors import LoraChatError
from lora_chat.system.atomic_write import write_text_atomically
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.hashing import digest_file

_CACHE_NAME = "digests.json"
_MAX_DIGESTS = 2000
"""Number of digests that are remembered."""
_MIN_AGE_SECONDS = 2.0
"""Age of a change, in seconds, from which on a later change is sure to have another time."""


def cached_file_digest(path: Path, *, recompute: bool = False) -> str:
    """Return a file's sha256; the one remembered for the same path, size, times and inode unless `recompute` is set."""
    before = path.stat()
    key = _cache_key(path, before)
    known = _read_cache()
    if not recompute and key in known:
        return known[key]
    digest = digest_file(path)
    # A change that comes within the same tick of the clock leaves the times as they are.
    settled = (
        time.time() - max(before.st_ctime, before.st_mtime) > _MIN_AGE_SECONDS and _cache_key(path, path.stat()) == key
    )
    kept = {other: value for other, value in known.items() if other != key} | ({key: digest} if settled else {})
    if kept != known:
        _write_cache(kept)
    return digest


def _cache_key(path: Path, stat: os.stat_result) -> str:
    # A change sets ctime, and no program can set it back as it can mtime.
    place = f"{stat.st_dev}:{stat.st_ino}"
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{place}"


def _read_cache() -> dict[str, str]:
    try:
        known = json.loads((cache_dir() / _CACHE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, LoraChatError):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)} if isinstance(known, dict) else {}


def _write_cache(known: dict[str, str]) -> None:
    """Remember digests; without the note a file is only read again next time."""
    newest = dict(list(known.items())[-_MAX_DIGESTS:])
    with suppress(OSError, LoraChatError):
        write_text_atomically(cache_dir() / _CACHE_NAME, json.dumps(newest), "a note")
