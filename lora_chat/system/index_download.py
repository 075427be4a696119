"""Download of one known file from a package index, with a pinned digest; a broken download continues where it stopped.

The digest and the size are part of lora_chat, so an index, a mirror or a proxy can refuse the file but not replace it.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from lora_chat.errors import IntegrityError, UnavailableError, explain_write_errors
from lora_chat.system.atomic_write import atomic_file
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.console import format_bytes
from lora_chat.system.download_view import DownloadView, open_download_view
from lora_chat.system.file_lock import acquire_lock
from lora_chat.system.hashing import digest_file
from lora_chat.system.index_client import BrokenConnectionError, IndexClient, check_file_status, hide_password
from lora_chat.system.index_page import PAGE_TYPES, FileLink, find_links
from lora_chat.system.index_settings import IndexSettings, read_index_settings
from lora_chat.system.regular_files import open_regular_file

logger = logging.getLogger(__name__)

_MAX_FAILURES = 4
"""Failed requests without a new byte between them after which a download stops."""
_MAX_PAGE_REQUESTS = 3
"""Requests for the page of a package if the connection fails."""
_FIRST_WAIT_SECONDS = 1.0
_GRACE_SECONDS, _MIN_BYTES_PER_SECOND = 300.0, 10_000
"""Time and lowest speed of a download, so that a server that sends a byte a minute does not keep it for days."""
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


@dataclass(frozen=True)
class IndexFile:
    """A file of a package index that lora_chat knows."""

    package: str
    """Name of the package as in its address."""
    name: str
    size: int
    """Size, in bytes."""
    sha256: str


@contextmanager
def downloaded_file(file: IndexFile, purpose: str, fix: str) -> Iterator[Path]:
    """Yield the path of a file with the known digest. It is deleted when the block ends without an error.

    `purpose` names the file in messages, `fix` ends those of a failed download. Raises UnavailableError without a
    network, IntegrityError if every index has another file of that name, DiskFullError.
    """
    folder = cache_dir("downloads")
    lock = open_regular_file(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        acquire_lock(lock, wait=True)
        path = folder / file.name
        if not _is_known(path, file):
            with explain_write_errors(
                path, purpose, file.size, "Free some space, or set XDG_CACHE_HOME to another disk."
            ):
                _fetch(file, path, purpose, fix)
        yield path
        with suppress(OSError):
            path.unlink()
    finally:
        os.close(lock)


def _is_known(path: Path, file: IndexFile) -> bool:
    """Return whether a path is a regular file with the known content."""
    try:
        return not path.is_symlink() and path.stat().st_size == file.size and digest_file(path) == file.sha256
    except OSError:
        return False


def _fetch(file: IndexFile, path: Path, purpose: str, fix: str) -> None:
    """Write the file from the first place that has it."""
    settings = read_index_settings()
    if settings.links and _copy_from_links(settings, file, path):
        return
    if settings.is_offline or not settings.indexes:
        reason = "the settings say offline" if settings.is_offline else "no index is configured"
        raise UnavailableError(f"{purpose} is not on this machine, and {reason}.\nFix: {fix}")
    logger.info(f"Fetching {purpose} ({format_bytes(file.size)}, once) from {_host(settings.indexes[0])}")
    reasons: list[str] = []
    refusal: IntegrityError | None = None
    for index in settings.indexes:
        try:
            if index.startswith("file:"):
                if _copy_known(Path(url2pathname(urlsplit(index).path)) / file.package / file.name, file, path):
                    return
                continue
            _fetch_from(index, settings.certificates, file, path)
            return
        except UnavailableError as error:
            reasons.append(str(error))
        except IntegrityError as error:
            refusal = error
    if refusal:
        raise refusal
    raise UnavailableError(
        f"Cannot fetch {purpose} ({file.name}): {'; '.join(reasons) or 'no index has it'}.\nFix: {fix}"
    )


def _copy_from_links(settings: IndexSettings, file: IndexFile, path: Path) -> bool:
    """Copy the file from a folder of `find-links`. Return whether one has it. Pages of links are not read."""
    folders = [url2pathname(urlsplit(link).path) if link.startswith("file:") else link for link in settings.links]
    return any(_copy_known(Path(folder) / file.name, file, path) for folder in folders if "://" not in folder)


def _copy_known(source: Path, file: IndexFile, path: Path) -> bool:
    """Copy a file if it has the known content. Return whether it was copied."""
    try:
        if source.stat().st_size != file.size:
            return False
        content = source.read_bytes()
    except OSError:
        return False
    if hashlib.sha256(content).hexdigest() != file.sha256:
        return False
    with atomic_file(path) as target:
        target.write(content)
    return True


def _fetch_from(index: str, certificates: str | None, file: IndexFile, path: Path) -> None:
    """Download the file from one index. Raises UnavailableError, IntegrityError."""
    client = IndexClient(index, certificates)
    try:
        links = _find_links(client, file)
        if not links:
            raise UnavailableError(f"{client.shown} has no {file.name}")
        others = [link for link in links if link.sha256 not in (None, file.sha256)]
        for link in (link for link in links if link not in others):
            _download(client, link, file, path)
            return
        raise IntegrityError(_describe_other(client.shown, file, others[0].sha256 or ""))
    finally:
        client.close()


def _find_links(client: IndexClient, file: IndexFile) -> list[FileLink]:
    """Return the links to the file on its package's page, which is requested again if the connection fails."""
    for attempt in range(_MAX_PAGE_REQUESTS):
        try:
            page = client.read_page(f"{client.index}/{file.package}/", PAGE_TYPES)
            return find_links(page[0], page[1], page[2], file.name) if page else []
        except BrokenConnectionError as error:
            reason = str(error)
            if attempt + 1 < _MAX_PAGE_REQUESTS:
                time.sleep(_FIRST_WAIT_SECONDS * 2**attempt)
    raise UnavailableError(f"{client.shown} does not answer: {reason}")


def _download(client: IndexClient, link: FileLink, file: IndexFile, path: Path) -> None:
    """Download a file in as many requests as it takes, continue an earlier download, and compare the digest."""
    part = path.with_name(f"{file.name}.part")
    with suppress(FileNotFoundError):
        if part.is_symlink() or part.stat().st_size > file.size:
            part.unlink()
    view = open_download_view(file.size)
    try:
        was_begun = part.exists() and part.stat().st_size > 0
        _receive_all(client, link.url, file, part, view)
        if was_begun and digest_file(part) != file.sha256:  # the beginning may come from another server
            part.unlink()
            _receive_all(client, link.url, file, part, view)
    finally:
        view.close()
    digest = digest_file(part)
    if digest != file.sha256:
        part.unlink()
        raise IntegrityError(_describe_other(client.shown, file, digest))
    part.replace(path)


def _receive_all(client: IndexClient, url: str, file: IndexFile, part: Path, view: DownloadView) -> None:
    """Append to a part until it has the size of the file. Raises UnavailableError."""
    failures, end = 0, time.monotonic() + _GRACE_SECONDS + file.size / _MIN_BYTES_PER_SECOND
    while (begin := part.stat().st_size if part.exists() else 0) < file.size:
        try:
            _receive(client, url, file, part, begin, end, view)
        except BrokenConnectionError as error:
            reason = str(error)
        else:
            reason = "the connection ended"
        size = part.stat().st_size if part.exists() else 0
        if size >= file.size:
            return
        failures = failures + 1 if size <= begin else 1
        if failures >= _MAX_FAILURES:
            raise UnavailableError(
                f"{hide_password(url)} stopped after {format_bytes(size)} of {format_bytes(file.size)}: {reason}; "
                "the next call continues there"
            )
        time.sleep(_FIRST_WAIT_SECONDS * 2 ** (failures - 1))


def _receive(
    client: IndexClient, url: str, file: IndexFile, part: Path, begin: int, end: float, view: DownloadView
) -> None:
    """Append the bytes of one request, as far as the connection lasts, and never more than the size of the file."""
    with client.open(url, {"Range": f"bytes={begin}-"} if begin else {}) as response:
        if response.status_code == 416:  # a server with another file, or without ranges
            part.unlink()
            raise BrokenConnectionError("the server cannot continue")
        check_file_status(response, hide_password(url))
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code == 206 and (not match or int(match[1]) != begin or int(match[3]) != file.size):
            raise IntegrityError(_describe_other(hide_password(url), file, "another size"))
        if response.status_code == 200:
            begin = 0
            length = response.headers.get("Content-Length", "")
            if length.isascii() and length.isdigit() and int(length) != file.size:
                raise IntegrityError(_describe_other(hide_password(url), file, f"{length[:15]} bytes"))
        with _open_part(part, begin) as target:
            for piece in response.iter_raw():
                target.write(piece[: file.size - begin])
                begin = min(file.size, begin + len(piece))
                view.show(begin)
                if begin == file.size:
                    return
                if time.monotonic() > end:
                    raise UnavailableError(f"{hide_password(url)} is too slow; the next call continues")


def _open_part(part: Path, begin: int) -> IO[bytes]:
    """Open the unfinished file at its end, or empty if the transfer begins again. Links are not followed."""
    handle = open_regular_file(part, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if begin else os.O_TRUNC))
    return os.fdopen(handle, "ab" if begin else "wb")


def _describe_other(shown: str, file: IndexFile, actual: str) -> str:
    return (
        f"{shown} has another file with the name {file.name}: {actual[:16]} instead of {file.size:,} bytes with sha256 "
        f"{file.sha256[:16]}. It was not used."
    )


def _host(index: str) -> str:
    return urlsplit(index).hostname or hide_password(index)
