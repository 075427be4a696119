"""A random key of this user on this machine, and signatures that only this key can make."""

import hashlib
import hmac
import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.system.cache_dir import config_dir
from lora_chat.system.regular_files import open_regular_file

_KEY_NAME = "user.key"
_KEY_BYTES = 32
_RECORD_SIGNATURE = "mac"
"""Key of a JSON record's signature."""


def sign(purpose: str, content: bytes) -> str:
    """Return the HMAC-SHA256 of content under the user's key, which is created at the first call.

    `purpose` separates signatures of different kinds. Raise OSError or IntegrityError if there is no safe key and none
    can be created.
    """
    return _compute_hmac(_read_key() or _create_key(), purpose, content)


def is_signed(purpose: str, content: bytes, signature: str) -> bool:
    """Return whether `signature` is the result of `sign` for this content. Raise OSError or IntegrityError."""
    key = _read_key()
    return key is not None and hmac.compare_digest(_compute_hmac(key, purpose, content), signature)


def sign_record(purpose: str, record: dict[str, object]) -> None:
    """Add this user's signature to a JSON record. Without a safe key it stays unsigned."""
    with suppress(OSError, LoraChatError):
        record[_RECORD_SIGNATURE] = sign(purpose, _encode_record(record))


def pop_record_signature(purpose: str, record: dict[str, object]) -> bool:
    """Remove the signature of a JSON record, and return whether this user made it."""
    signature = record.pop(_RECORD_SIGNATURE, None)
    try:
        return (
            isinstance(signature, str) and signature.isascii() and is_signed(purpose, _encode_record(record), signature)
        )
    except (OSError, LoraChatError):
        return False


def _encode_record(record: dict[str, object]) -> bytes:
    """Return the canonical bytes of a record."""
    return json.dumps(record, sort_keys=True).encode("ascii")


def _compute_hmac(key: bytes, purpose: str, content: bytes) -> str:
    return hmac.new(key, b"lora_chat " + purpose.encode() + b"\0" + content, hashlib.sha256).hexdigest()


def _key_path() -> Path:
    return config_dir() / _KEY_NAME


def _read_key() -> bytes | None:
    """Return the user's key, or None. Raise OSError or IntegrityError for an unsafe key."""
    path = _key_path()
    try:
        handle = open_regular_file(path)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        key = file.read(_KEY_BYTES + 1)
    if os.name != "nt" and (status.st_uid != os.geteuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)):
        raise IntegrityError(
            f"Other users can read or replace the key {path}, so its signatures prove nothing.\n"
            "Delete it. A new key is created, and --adopt signs your runs with it."
        )
    if len(key) != _KEY_BYTES:
        raise IntegrityError(
            f"The key {path} is damaged: it does not have {_KEY_BYTES} bytes. Delete it; a new key is created."
        )
    return key


def _create_key() -> bytes:
    """Create and return the key atomically; of two simultaneous processes, both use the first key."""
    path = _key_path()
    temporary = path.with_name(f".{_KEY_NAME}.{secrets.token_hex(8)}.part")
    handle = open_regular_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            if os.name == "nt":
                temporary.rename(path)  # does not replace a file on Windows
            else:
                os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    key = _read_key()
    if key is None:
        raise IntegrityError(f"The key {path} was deleted while it was created. Run the command again.")
    return key
