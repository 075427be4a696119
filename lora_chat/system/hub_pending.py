"""Markers of downloads that have not been compared with the commit's listing yet.

The hub's library moves a file into the cache before its hash is checked. If this process were killed then, the file
would be trusted later. A marker with the listing is therefore written first and deleted after all files have been
compared; a cached commit that still has a marker is compared again before it is used.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_chat.system.bounded_files import LARGE_FILE_BYTES, read_json_object
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.hub_cache import check_cached_file, has_size_and_digest
from lora_chat.system.regular_files import open_regular_file

FileListing = Mapping[str, tuple[int, str | None]]
"""Size in bytes of each file, and its SHA-256 if known."""


@contextmanager
def mark_pending(name: str, commit: str, kind: str, listing: FileListing) -> Iterator[None]:
    """Write a marker before files are downloaded; it remains if the block fails or the process is killed."""
    path = _pending_folder() / f"{_marker_prefix(name, commit, kind)}-{secrets.token_hex(8)}.json"
    body = json.dumps({"name": name, "commit": commit, "kind": kind, "files": dict(listing)})
    with os.fdopen(open_regular_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="utf-8") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    yield
    _delete(path)


def is_download_verified(name: str, commit: str, kind: str, folder: Path) -> bool:
    """Return whether all cached files of a commit are correct, as far as an interrupted download left markers.

    Markers of downloads whose files are correct are deleted. Raise IntegrityError for a planted link.
    """
    for marker in sorted(_pending_folder().glob(f"{_marker_prefix(name, commit, kind)}-*.json")):
        try:
            files = read_json_object(marker, LARGE_FILE_BYTES)["files"]
            correct = all(_is_intact(folder, file, size, sha256) for file, (size, sha256) in files.items())
        except FileNotFoundError:  # another process has just finished its download
            continue
        except Exception:  # the marker itself is incomplete, so nothing is known
            correct = False
        if not correct:
            return False
        _delete(marker)
    return True


def clear_pending(name: str, commit: str, kind: str, files: FileListing) -> None:
    """Delete the markers that list only these files, which were just compared."""
    for marker in _pending_folder().glob(f"{_marker_prefix(name, commit, kind)}-*.json"):
        with suppress(Exception):
            if not files.keys() >= dict(read_json_object(marker, LARGE_FILE_BYTES)["files"]).keys():
                continue
        _delete(marker)


def _is_intact(folder: Path, file: str, size: int, sha256: str | None) -> bool:
    """Return whether a file is correct or missing, because the user of a missing file reports it."""
    path = check_cached_file(folder, file)
    return not path.exists() or has_size_and_digest(path, size, sha256)


def _pending_folder() -> Path:
    return cache_dir("hub-pending")


def _marker_prefix(name: str, commit: str, kind: str) -> str:
    return hashlib.sha256(f"{kind} {name} {commit}".encode()).hexdigest()[:32]


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
