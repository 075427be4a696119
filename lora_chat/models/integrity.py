"""Checks that a base's files are complete, unchanged since the download, and unchanged while they are read."""

import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.models.weight_files import SAFE_WEIGHTS_INDEX_NAME, list_shards
from lora_chat.system.atomic_write import write_text_atomically
from lora_chat.system.bounded_files import read_json
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.hashing import digest_file
from lora_chat.system.safetensors_header import check_safetensors_header
from lora_chat.system.sanitize import sanitize_line

DIGESTS_NAME = "sha256.json"
"""File beside weights that lora_chat wrote, with their sha256 by file name."""
_SHA256 = re.compile(r"[0-9a-f]{64}")

_CACHE_NAME = "digests.json"
_MAX_DIGESTS = 2000
"""Number of digests in the cache."""
_MIN_AGE_SECONDS = 2.0
"""Age of a change, in seconds, after which a later change is certain to have another time."""

FileStats = Mapping[str, tuple[int, ...]]
"""Device, inode, size and times of files, by their paths inside the base."""
_SUFFIXES = {".json", ".safetensors", ".jinja", ".model", ".bin", ".spm", ".bpe", ".vocab", ".merges", ".tiktoken"}
_TEXT_NAMES = {"vocab.txt", "merges.txt"}


def check_safetensors_file(path: Path) -> None:
    """Raise IntegrityError unless a safetensors file is as long as its header says. Only the header is read."""
    from safetensors import SafetensorError, safe_open

    try:
        check_safetensors_header(path)
        with safe_open(path, framework="pt"):
            pass
    except (OSError, SafetensorError, IntegrityError) as error:
        raise IntegrityError(f"{path} is damaged: {error}.\n{_format_fix(path)}") from error


def check_digest(path: Path, digest: str) -> None:
    """Raise IntegrityError if the expected sha256 of a file is known and differs from `digest`."""
    expected = _expected_digest(path)
    if expected and expected != digest:
        raise IntegrityError(
            f"{path} is damaged: its sha256 is {digest[:16]}..., not {expected[:16]}...\n{_format_fix(path)}"
        )


def _expected_digest(path: Path) -> str | None:
    """Return the sha256 that was noted when the file was written; None if unknown.

    In the hub's cache, a large file is a link to a blob whose name is its sha256.
    """
    blob = path.resolve().name
    if path.is_symlink() and _SHA256.fullmatch(blob):
        return blob
    try:
        return str(read_json(path.parent / DIGESTS_NAME)[path.name])
    except (OSError, IntegrityError, KeyError, TypeError):
        return None


def _format_fix(path: Path) -> str:
    """Return the sentence that says how to replace a damaged file."""
    if path.is_symlink():
        return f"Fix: delete {path.resolve()} and run the command again, which downloads it."
    if (path.parent / DIGESTS_NAME).is_file():
        return f"Fix: delete {path.parent} and run the command again, which writes it."
    return "Fix: copy or download it again."


def cached_file_digest(path: Path, *, recompute: bool = False) -> str:
    """Return a file's sha256, cached by path, size, times and inode; `recompute` ignores the cache."""
    before = path.stat()
    key = _cache_key(path, before)
    cache = _read_cache()
    if not recompute and key in cache:
        return cache[key]
    digest = digest_file(path)
    # A change within the same tick of the clock does not change the times, so a recent one is not cached.
    is_settled = (
        time.time() - max(before.st_ctime, before.st_mtime) > _MIN_AGE_SECONDS and _cache_key(path, path.stat()) == key
    )
    updated = {other: value for other, value in cache.items() if other != key} | ({key: digest} if is_settled else {})
    if updated != cache:
        _write_cache(updated)
    return digest


def _cache_key(path: Path, stat: os.stat_result) -> str:
    """Return a key that changes whenever the file does. No program can set ctime back, unlike mtime."""
    inode = f"{stat.st_dev}:{stat.st_ino}"
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{inode}"


def _read_cache() -> dict[str, str]:
    """Return the cached digests by key; none if the cache is missing or damaged."""
    try:
        cache = json.loads((cache_dir() / _CACHE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, LoraChatError):
        return {}
    return {key: value for key, value in cache.items() if isinstance(value, str)} if isinstance(cache, dict) else {}


def _write_cache(cache: dict[str, str]) -> None:
    """Write the newest digests. A failure is ignored, because it only means that the file is read again."""
    newest = dict(list(cache.items())[-_MAX_DIGESTS:])
    with suppress(OSError, LoraChatError):
        write_text_atomically(cache_dir() / _CACHE_NAME, json.dumps(newest), "a note")


def read_file_stats(folder: Path) -> FileStats:
    """Return device, inode, size and times of every file that loading a base may open; none for a missing folder.

    A later change always shows, because no program can set ctime back. The exception is a change through a memory map
    that was opened before.
    """
    paths = []
    with suppress(OSError):
        paths = [path for path in folder.iterdir() if path.suffix in _SUFFIXES or path.name in _TEXT_NAMES]
    paths += (folder / "additional_chat_templates").glob("*.jinja")
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    with suppress(IntegrityError):  # A damaged index is reported when the weights are looked for.
        paths += [folder / name for name in list_shards(index)] if index.is_file() else []
    stats = {}
    for path in paths:
        with suppress(OSError):
            stats[path.relative_to(folder).as_posix()] = _stat_key(path.stat())
    return stats


def check_unchanged(folder: Path, before: FileStats) -> None:
    """Raise IntegrityError naming a file that appeared, disappeared or changed since `before` was read."""
    now = read_file_stats(folder)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        raise IntegrityError(
            f"{sanitize_line(changed[0], 100)} in the base {folder} changed while the base was read, so the loaded "
            "file may differ from the checked one.\n"
            "Fix: run the command again while no other program writes into that folder."
        )


def _stat_key(stat: os.stat_result) -> tuple[int, ...]:
    """Return the values that change whenever a file does."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
