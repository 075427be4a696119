"""Checks of what a hub answers: ETags, commits, file names, sizes and listings, before any library uses them.

A hub is the endpoint that the user chose, but a mirror or a server between may be hostile, and its answers become
names in the cache: an ETag is the name of a file of `blobs/`, a commit is the name of a folder.
"""

import re
from collections.abc import Mapping
from typing import Any

from lora_chat.errors import BaseUnavailableError
from lora_chat.system.sanitize import visible
from lora_chat.system.strict_json import parse_json

MOST_FILES = 100_000
"""Files in one listing."""
LARGEST_FILE = 2**50
"""Size of one file, in bytes."""
_SHOWN = 80

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Git and SHA-256 hashes, and the forms of other servers: "hash-3" (S3, several parts), "66f1a2b3-2d5" (nginx),
# "0x8DC..." (Azure). No separator, no leading dot, short enough for a file name with a suffix.
_ETAG = re.compile(r'(?:W/)?"?(?P<tag>[A-Za-z0-9][A-Za-z0-9._=+-]{0,127})"?')
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # file names that Windows opens
_DIGITS = re.compile(r"[0-9]{1,18}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@/-]{0,199}")


class HubAnswerError(BaseUnavailableError):
    """The hub answered something that no honest hub answers; nothing of it was used."""


def refuse(what: str) -> HubAnswerError:
    """Return the error for an answer that is refused; `what` is a clause such as "its ETag is ..."."""
    return HubAnswerError(
        f"The hub's answer is refused: {what}.\n"
        "Nothing of it was used. Check HF_ENDPOINT and the proxy, or name a local folder or files."
    )


def check_etag(value: str) -> None:
    """Raise HubAnswerError unless an ETag can be a plain file name."""
    found = _ETAG.fullmatch(value)
    if not found or found["tag"].endswith(".") or _DEVICES.fullmatch(found["tag"]):
        raise refuse(f"its ETag is {_short(value)}, which cannot be the name of a file")


def check_commit(value: object, expected: str | None = None) -> str:
    """Return a commit id of 40 hex digits. Raises HubAnswerError for others, and for another than expected."""
    if not isinstance(value, str) or not _COMMIT.fullmatch(value):
        raise refuse(f"its commit is {_short(value)}, not 40 hex digits")
    if expected is not None and value != expected:
        raise refuse(f"its commit is {value}, but {expected} was asked for")
    return value


def is_commit(value: str | None) -> bool:
    """Return whether a revision is a commit id already."""
    return value is not None and _COMMIT.fullmatch(value) is not None


def is_revision(value: str | None) -> bool:
    """Return whether a revision stays inside the folder in which refs are cached; None is the default branch."""
    if value is None:
        return True
    plain = _REVISION.fullmatch(value) is not None and not value.endswith(("/", ".lock"))
    return plain and ".." not in value and "//" not in value and "/." not in value


def check_revision(value: str | None) -> None:
    """Raise BaseUnavailableError for a revision that would climb out of the folder in which refs are cached."""
    if not is_revision(value):
        raise BaseUnavailableError(
            f"{_short(value)} cannot be a revision of a repository.\nName a branch, a tag or a commit."
        )


def check_size(value: object, what: str) -> int:
    """Return a size from a header or a listing. Raises HubAnswerError for anything but digits within bounds."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_FILE:
        raise refuse(f"the size of {visible(what, _SHOWN)} is {_short(value)}")
    return value


def check_name(value: object) -> str:
    """Return a file's name in a repository, if it is relative and stays inside on every system.

    Raises HubAnswerError for absolute names, `..`, backslashes, drive letters, control characters and long names.
    """
    if not isinstance(value, str) or not 0 < len(value) <= 1000:
        raise refuse(f"it names a file {_short(value)}")
    try:
        parts = value.encode("utf-8").split(b"/")
    except UnicodeEncodeError:  # half of a surrogate pair
        raise refuse(f"it names a file {_short(value)}") from None
    control = any(ord(character) < 32 or 127 <= ord(character) < 160 for character in value)
    if control or "\\" in value or re.match(r"[A-Za-z]:", value):
        raise refuse(f"it names a file {_short(value)}")
    if any(part in (b"", b".", b"..") or len(part) > 255 for part in parts):
        raise refuse(f"it names a file {_short(value)}")
    return value


def check_json(body: bytes) -> Any:
    """Decode a JSON answer and check every commit, name, size and hash in it that the hub's library uses.

    Raises HubAnswerError for syntax, nesting, types and names that are odd.
    """
    try:
        value = parse_json(body.decode("utf-8"))
    except ValueError as error:
        raise refuse(f"its JSON {_short(str(error))}") from error
    if isinstance(value, dict):
        _check_repository(value)
    elif isinstance(value, list):
        _check_entries(value)
    return value


def _check_repository(value: Mapping[str, Any]) -> None:
    if value.get("sha") is not None:
        check_commit(value["sha"])
    siblings = value.get("siblings")
    if siblings is None:
        return
    if not isinstance(siblings, list) or len(siblings) > MOST_FILES:
        raise refuse("its list of files is none, or has too many")
    for one in siblings:
        if not isinstance(one, dict):
            raise refuse("its list of files holds something else")
        name = check_name(one.get("rfilename"))
        if one.get("size") is not None:
            check_size(one["size"], name)


def _check_entries(value: list[Any]) -> None:
    """Check a list of the files of a tree; other lists of the API have no paths."""
    if len(value) > MOST_FILES:
        raise refuse(f"it lists {len(value):,} files; {MOST_FILES:,} are allowed")
    for one in value:
        if not isinstance(one, dict) or "path" not in one:
            continue
        name = check_name(one["path"])
        if one.get("type") == "file":
            check_size(one.get("size"), name)
        lfs = one.get("lfs")
        if lfs is None:
            continue
        if not isinstance(lfs, dict) or not isinstance(lfs.get("oid"), str) or not _SHA256.fullmatch(lfs["oid"]):
            raise refuse(f"the hash of {visible(name, _SHOWN)} is not that of SHA-256")
        check_size(lfs.get("size"), name)


def _short(value: object) -> str:
    return visible(value if isinstance(value, str) else repr(value), _SHOWN)
