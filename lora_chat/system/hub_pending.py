"""Downloads that were begun and not yet compared with the commit's listing.

The hub's library puts a file into its place before its hash is known to be right. If this process is killed in that
moment, the file would count as good ever after. So a mark with the listing is written first and deleted when all files
were compared; a cached commit with a mark left over is compared again before it is used.
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
"""Size in bytes and SHA-256, if known, of each file."""


@contextmanager
def mark_pending(name: str, commit: str, kind: str, listing: FileListing) -> Iterator[None]:
    """Leave a mark while files are downloaded; it stays if the block fails or the process is killed."""
    path = _pending_folder() / f"{_marker_prefix(name, commit, kind)}-{secrets.token_hex(8)}.json"
    body = json.dumps({"name": name, "commit": commit, "kind": kind, "files": dict(listing)})
    with os.fdopen(open_regular_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="utf-8") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    yield
    _delete(path)


def is_download_verified(name: str, commit: str, kind: str, folder: Path) -> bool:
    """Return whether no download of a commit was cut short, or all that it left is what the commit lists.

    Marks of downloads whose files are right are deleted. Raises IntegrityError for a file that is a planted link.
    """
    for mark in sorted(_pending_folder().glob(f"{_marker_prefix(name, commit, kind)}-*.json")):
        try:
            files = read_json_object(mark, LARGE_FILE_BYTES)["files"]
            right = all(_is_intact(folder, file, size, sha256) for file, (size, sha256) in files.items())
        except FileNotFoundError:  # another process has finished its download in this moment
            continue
        except Exception:  # the mark itself was cut short, so nothing is known
            right = False
        if not right:
            return False
        _delete(mark)
    return True


def clear_pending(name: str, commit: str, kind: str, files: FileListing) -> None:
    """Delete marks that list no other file than these, which were just compared."""
    for mark in _pending_folder().glob(f"{_marker_prefix(name, commit, kind)}-*.json"):
        with suppress(Exception):
            if not files.keys() >= dict(read_json_object(mark, LARGE_FILE_BYTES)["files"]).keys():
                continue
        _delete(mark)


def _is_intact(folder: Path, file: str, size: int, sha256: str | None) -> bool:
    """Return whether a file is right or not there; what is missing is seen by whoever needs it."""
    path = check_cached_file(folder, file)
    return not path.exists() or has_size_and_digest(path, size, sha256)


def _pending_folder() -> Path:
    return cache_dir("hub-pending")


def _marker_prefix(name: str, commit: str, kind: str) -> str:
    return hashlib.sha256(f"{kind} {name} {commit}".encode()).hexdigest()[:32]


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
