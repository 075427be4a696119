"""A random key of this user on this machine, and marks made with it that nobody else can make."""

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from lora_chat.errors import IntegrityError
from lora_chat.system.cache_dir import config_dir
from lora_chat.system.regular_files import open_regular_file

_KEY_NAME = "user.key"
_KEY_BYTES = 32


def sign(purpose: str, content: bytes) -> str:
    """Return the HMAC-SHA256 of content under the user's key, which is created at the first call.

    `purpose` keeps marks of one kind from passing for marks of another. Raises OSError or IntegrityError if there is
    no key and none can be kept.
    """
    return _compute_hmac(_read_key() or _create_key(), purpose, content)


def is_signed(purpose: str, content: bytes, mark: str) -> bool:
    """Whether `mark` is what `sign` returns for this content. Raises OSError or IntegrityError for an unsafe key."""
    key = _read_key()
    return key is not None and hmac.compare_digest(_compute_hmac(key, purpose, content), mark)


def _compute_hmac(key: bytes, purpose: str, content: bytes) -> str:
    return hmac.new(key, b"lora_chat " + purpose.encode() + b"\0" + content, hashlib.sha256).hexdigest()


def _key_path() -> Path:
    return config_dir() / _KEY_NAME


def _read_key() -> bytes | None:
    path = _key_path()
    try:
        handle = open_regular_file(path)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        key = file.read(_KEY_BYTES + 1)
    if os.name != "nt" and (found.st_uid != os.geteuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)):
        raise IntegrityError(
            f"Other users can read or replace the key {path}, so runs that it signed cannot be told from theirs.\n"
            f"Delete it: a new one is made, and your runs are taken in again with --adopt."
        )
    if len(key) != _KEY_BYTES:
        raise IntegrityError(f"The key {path} is damaged: it has not {_KEY_BYTES} bytes. Delete it; a new one is made.")
    return key


def _create_key() -> bytes:
    """Create the key whole or not at all; of two processes at once, both take the one that came first."""
    path = _key_path()
    beside = path.with_name(f".{_KEY_NAME}.{secrets.token_hex(8)}.part")
    handle = open_regular_file(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            if os.name == "nt":
                beside.rename(path)  # refuses to replace there
            else:
                os.link(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    key = _read_key()
    if key is None:
        raise IntegrityError(f"The key {path} was deleted while it was made.")
    return key
