"""The file of keys, which is read again when it changes, so that a key can be replaced without a restart."""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from pathlib import Path

from lora_chat.errors import IntegrityError, UsageError
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.sanitize import sanitize_line

logger = logging.getLogger(__name__)

MIN_KEY_CHARACTERS = 16
_MAX_KEY_CHARACTERS = 512
_MAX_KEYS = 1000
_MAX_FILE_BYTES = 2**18
_NEW_KEY_BYTES = 32
_CHECK_SECONDS = 1.0
"""Seconds between two looks at the file."""
_RECENT_SECONDS = 3.0
"""Age up to which a file is read again although its time is the same, because clocks of file systems are coarse."""
_COMMENT = re.compile(rb"(?:^|\s)#")
_Version = tuple[int, int, int, int]


class KeyFile:
    """Digests of the keys in a file. The keys themselves are not kept."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raise UsageError or IntegrityError if it cannot be used."""
        self.path = path
        self._looked = time.monotonic()
        self._version, self._digests = _read(path)
        self._is_recent = True
        self._failure: str | None = None

    @property
    def count(self) -> int:
        """Return the number of keys."""
        return len(self._digests)

    def accepts(self, key: str) -> bool:
        """Return whether a key is in the file. The time depends neither on the key nor on the line that equals it."""
        self._look()
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        equal = 0
        for known in self._digests:
            equal |= hmac.compare_digest(known, digest)
        return bool(equal)

    def _look(self) -> None:
        """Read the file again if it changed; a file that cannot be used leaves the keys unchanged."""
        if time.monotonic() - self._looked < _CHECK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            version = _version_of(self.path.stat())
            if version == self._version and not self._is_recent and self._failure is None:
                return
            version, digests = _read(self.path)
        except (OSError, IntegrityError, UsageError) as error:
            self._report_failure(error)
            return
        if digests != self._digests or self._failure is not None:
            logger.info(f"Read {len(digests)} key{'s' * (len(digests) != 1)} from {self.path}, which changed.")
        self._is_recent = time.time() - version[0] / 1e9 < _RECENT_SECONDS
        self._version, self._digests, self._failure = version, digests, None

    def _report_failure(self, error: Exception) -> None:
        """Log once for each cause that the old keys stay."""
        failure = sanitize_line(str(error), 500)
        if failure != self._failure:
            logger.warning(f"The key file changed and cannot be used, so the earlier keys stay: {failure}")
        self._failure = failure


def write_new_key(path: Path) -> None:
    """Append a random key to a file that only its owner can read; create the file if none exists."""
    key = secrets.token_urlsafe(_NEW_KEY_BYTES)
    try:
        handle = open_regular_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, follow=True)
    except OSError as error:
        raise UsageError(f"Cannot write the key file {path} ({error.strerror}). Fix: name another file.") from error
    with os.fdopen(handle, "r+b") as file:
        _check_mode(path, os.fstat(file.fileno()), warns=True)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            key = key if file.read(1) == b"\n" else f"\n{key}"
        file.write(f"{key}\n".encode("ascii"))
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> tuple[_Version, tuple[bytes, ...]]:
    """Return the version of the file and the digests of its keys."""
    try:
        handle = open_regular_file(path, follow=True)
    except OSError as error:
        raise UsageError(
            f"Cannot read the key file {path} ({error.strerror}). Fix: lora-chat serve --new-key {path}"
        ) from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        _check_mode(path, status, warns=True)
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise UsageError(f"The key file {path} is larger than {_MAX_FILE_BYTES:,} bytes. Fix: one key a line.")
    keys = parse_keys(content, path)
    return _version_of(status), tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def parse_keys(content: bytes, path: Path) -> list[str]:
    """Return the keys of a file: one a line, `#` begins a comment. Raise UsageError; no message quotes a key."""
    keys: list[str] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        words = _COMMENT.split(line)[0].split()
        if not words:
            continue
        where = f"(line {number} of {path}). Fix: lora-chat serve --new-key {path}"
        if len(words) > 1:
            raise UsageError(f"A key has no spaces {where}")
        if not words[0].isascii() or not words[0].decode("latin-1").isprintable():
            raise UsageError(f"A key has letters, digits and signs of ASCII only {where}")
        if not MIN_KEY_CHARACTERS <= len(words[0]) <= _MAX_KEY_CHARACTERS:
            raise UsageError(
                f"A key has {MIN_KEY_CHARACTERS} to {_MAX_KEY_CHARACTERS} characters, not {len(words[0])} {where}"
            )
        keys.append(words[0].decode("ascii"))
    if not keys:
        raise UsageError(f"The key file {path} has no key. Fix: lora-chat serve --new-key {path}")
    if len(keys) > _MAX_KEYS:
        raise UsageError(f"The key file {path} has {len(keys):,} keys; at most {_MAX_KEYS:,} are allowed.")
    return list(dict.fromkeys(keys))


_warned_paths: set[Path] = set()


def _check_mode(path: Path, status: os.stat_result, *, warns: bool) -> None:
    """Refuse a file that every user can write; warn once about one that others can read or that its group can write."""
    if os.name == "nt":
        return
    if status.st_mode & stat.S_IWOTH:
        raise IntegrityError(f"Every user can write the key file {path}, and so add a key. Fix: chmod 600 {path}")
    if warns and path not in _warned_paths and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        _warned_paths.add(path)
        logger.warning(f"Other users may read the key file {path}. Fix: chmod 600 {path}")


def _version_of(status: os.stat_result) -> _Version:
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns
