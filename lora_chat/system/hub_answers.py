"""Checks of a hub's ETags, commits, file names, sizes and listings before any library uses them.

The user chose the endpoint, but a mirror or an intermediate server may be hostile, and its responses become names in
the cache: an ETag becomes the name of a file in `blobs/`, a commit the name of a folder.
"""

import re
from collections.abc import Mapping
from typing import Any

from lora_chat.errors import UnavailableError
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.strict_json import parse_strict_json

MAX_FILES = 100_000
"""Largest number of files in one listing."""
MAX_FILE_BYTES = 2**50
"""Largest size of one file, in bytes."""
_MAX_SHOWN_CHARACTERS = 80

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Git and SHA-256 hashes, and the forms of other servers: "hash-3" (S3, several parts), "66f1a2b3-2d5" (nginx),
# "0x8DC..." (Azure). No separator, no leading dot, short enough for a file name with a suffix.
_ETAG = re.compile(r'(?:W/)?"?(?P<tag>[A-Za-z0-9][A-Za-z0-9._=+-]{0,127})"?')
_WINDOWS_DEVICE_NAMES = re.compile(
    r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE
)  # file names that Windows opens
_DIGITS = re.compile(r"[0-9]{1,18}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@/-]{0,199}")


class HubResponseError(UnavailableError):
    """A response that no honest hub sends; no part of it was used."""


def refused_response(what: str) -> HubResponseError:
    """Return the error for a refused response; `what` is a clause such as "its ETag is ..."."""
    return HubResponseError(
        f"The hub's response is refused: {what}.\n"
        "No part of it was used. Check HF_ENDPOINT and the proxy, or name a local folder or files."
    )


def check_etag(value: str) -> None:
    """Raise HubResponseError unless an ETag can be a plain file name."""
    match = _ETAG.fullmatch(value)
    if not match or match["tag"].endswith(".") or _WINDOWS_DEVICE_NAMES.fullmatch(match["tag"]):
        raise refused_response(f"its ETag is {_shorten(value)}, which cannot be the name of a file")


def check_commit(value: object, expected: str | None = None) -> str:
    """Return a commit id. Raise HubResponseError unless it has 40 hex digits and is the expected one, if any."""
    if not isinstance(value, str) or not _COMMIT.fullmatch(value):
        raise refused_response(f"its commit is {_shorten(value)}, not 40 hex digits")
    if expected is not None and value != expected:
        raise refused_response(f"its commit is {value}, but {expected} was asked for")
    return value


def is_commit_hash(value: str | None) -> bool:
    """Return whether a revision is a commit id."""
    return value is not None and _COMMIT.fullmatch(value) is not None


def is_safe_revision(value: str | None) -> bool:
    """Return whether the cached name of a revision stays inside the cache folder; None is the default branch."""
    if value is None:
        return True
    plain = _REVISION.fullmatch(value) is not None and not value.endswith(("/", ".lock"))
    return plain and ".." not in value and "//" not in value and "/." not in value


def check_revision(value: str | None) -> None:
    """Raise UnavailableError for a revision whose cached name would leave the cache folder."""
    if not is_safe_revision(value):
        raise UnavailableError(
            f"{_shorten(value)} cannot be a revision of a repository.\nUse a branch, a tag or a commit."
        )


def check_size(value: object, what: str) -> int:
    """Return a size from a header or a listing. Raise HubResponseError unless it is an integer within the limit."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_FILE_BYTES:
        raise refused_response(f"the size of {sanitize_line(what, _MAX_SHOWN_CHARACTERS)} is {_shorten(value)}")
    return value


def check_file_name(value: object) -> str:
    """Return a file's name in a repository. Raise HubResponseError unless it stays inside on every system.

    Absolute names, `..`, backslashes, drive letters, control characters and long names are refused.
    """
    if not isinstance(value, str) or not 0 < len(value) <= 1000:
        raise refused_response(f"it names a file {_shorten(value)}")
    try:
        parts = value.encode("utf-8").split(b"/")
    except UnicodeEncodeError:  # half of a surrogate pair
        raise refused_response(f"it names a file {_shorten(value)}") from None
    control = any(ord(character) < 32 or 127 <= ord(character) < 160 for character in value)
    if control or "\\" in value or re.match(r"[A-Za-z]:", value):
        raise refused_response(f"it names a file {_shorten(value)}")
    if any(part in (b"", b".", b"..") or len(part) > 255 for part in parts):
        raise refused_response(f"it names a file {_shorten(value)}")
    return value


def parse_checked_json(body: bytes) -> Any:
    """Decode a JSON response and check every commit, name, size and hash that the hub's library uses.

    Raise HubResponseError for invalid syntax, deep nesting, wrong types and unsafe names.
    """
    try:
        value = parse_strict_json(body.decode("utf-8"))
    except ValueError as error:
        raise refused_response(f"its JSON {_shorten(str(error))}") from error
    if isinstance(value, dict):
        _check_repository(value)
    elif isinstance(value, list):
        _check_entries(value)
    return value


def _check_repository(value: Mapping[str, Any]) -> None:
    """Check the description of a repository. Raise HubResponseError."""
    if value.get("sha") is not None:
        check_commit(value["sha"])
    siblings = value.get("siblings")
    if siblings is None:
        return
    if not isinstance(siblings, list) or len(siblings) > MAX_FILES:
        raise refused_response("its list of files is not a list, or is too long")
    for sibling in siblings:
        if not isinstance(sibling, dict):
            raise refused_response("an entry of its list of files is not an object")
        name = check_file_name(sibling.get("rfilename"))
        if sibling.get("size") is not None:
            check_size(sibling["size"], name)


def _check_entries(value: list[Any]) -> None:
    """Check a listing of files; other lists of the API have no paths. Raise HubResponseError."""
    if len(value) > MAX_FILES:
        raise refused_response(f"it lists {len(value):,} files; {MAX_FILES:,} are allowed")
    for entry in value:
        if not isinstance(entry, dict) or "path" not in entry:
            continue
        name = check_file_name(entry["path"])
        if entry.get("type") == "file":
            check_size(entry.get("size"), name)
        lfs = entry.get("lfs")
        if lfs is None:
            continue
        if not isinstance(lfs, dict) or not isinstance(lfs.get("oid"), str) or not _SHA256.fullmatch(lfs["oid"]):
            raise refused_response(f"the hash of {sanitize_line(name, _MAX_SHOWN_CHARACTERS)} is not a SHA-256")
        check_size(lfs.get("size"), name)


def _shorten(value: object) -> str:
    return sanitize_line(value if isinstance(value, str) else repr(value), _MAX_SHOWN_CHARACTERS)
