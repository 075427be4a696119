"""Files of a hub data set that are read over the network, in parts, and never stored."""

import hashlib
import io
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Protocol

from lora_chat.errors import DataError, IntegrityError, UnavailableError
from lora_chat.system.hub_client import HubFailureError
from lora_chat.system.hub_ranges import read_range

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_FIRST_BLOCK_BYTES, _MAX_BLOCK_BYTES = 1 << 18, 1 << 23
"""Bytes of the first request, and of later ones; the size doubles, so that a few rows need few bytes."""
_BUFFER_BYTES, _KEPT_BLOCKS = 1 << 16, 3
_MAX_READ_BYTES = 1 << 31
"""Largest part of a file in memory, such as a column of the rows that Parquet stores together."""


class FileStatus(Protocol):
    """Type and size of a file."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_size(self) -> int: ...


class DataFile(Protocol):
    """A file of rows: a path on this machine, or a file on the hub."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]: ...
    def stat(self) -> FileStatus: ...


@dataclass(frozen=True)
class _StreamedStatus:
    """Type and size of a file on the hub."""

    st_size: int
    st_mode: int = stat.S_IFREG


@dataclass(frozen=True)
class StreamedFile:
    """A file of one commit of a hub data set."""

    repository: str
    commit: str
    name: str
    size: int
    """Size in bytes, as the hub lists it."""
    sha256: str | None = None
    """SHA-256, or None if the hub lists none."""
    _blocks: "_Blocks" = field(default_factory=lambda: _Blocks(), repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit[:12]}/{self.name}"

    @property
    def content_key(self) -> str:
        """Return a text that differs for files with other content, because a commit never changes."""
        return f"hub {self.repository} {self.commit} {self.name} {self.size} {self.sha256}"

    def open(self, mode: Literal["rb"] = "rb", /) -> IO[bytes]:
        """Open the file for reading."""
        return io.BufferedReader(_RangeReader(self), _BUFFER_BYTES)

    def stat(self) -> FileStatus:
        """Return the type and size."""
        return _StreamedStatus(self.size)

    def read_at(self, offset: int, count: int) -> bytes:
        """Return bytes from an offset, at most `count` and at least one, except at the end of the file."""
        block_begin, block = self._blocks.find(offset)
        if not block:
            block_begin, wanted = offset, min(max(count, self._blocks.next_size()), self.size - offset)
            if wanted > _MAX_READ_BYTES:
                raise DataError(f"{self} has a column of {wanted:,} bytes; {_MAX_READ_BYTES:,} can be streamed.")
            block = self._receive(offset, wanted) if wanted > 0 else b""
            self._blocks.add(offset, block)
            self._check_digest()
        begin = offset - block_begin
        return block[begin : begin + count]

    def _receive(self, offset: int, count: int) -> bytes:
        """Return bytes from the hub. Raise UnavailableError if it does not answer."""
        try:
            return read_range(self.repository, self.name, self.commit, self.size, offset, count, "dataset")
        except HubFailureError as error:
            raise UnavailableError(
                f"The data set {self.repository} cannot be read further: {error.what} ({self}, byte {offset:,}). "
                "What was encoded before is kept.\n"
                "Fix: start again when the hub can be reached, and it continues there."
            ) from error

    def _check_digest(self) -> None:
        """Raise IntegrityError if the file was read from its beginning to its end and is not the listed one."""
        digest = self._blocks.whole_digest(self.size)
        if self.sha256 is not None and digest is not None and digest != self.sha256:
            raise IntegrityError(
                f"{self} is not the file that the hub lists: its SHA-256 differs.\n"
                "Try again. If it happens again, the hub or an intermediate server alters files."
            )


class _Blocks:
    """The last parts of a file that were received, and the digest of all of them while they follow each other."""

    def __init__(self) -> None:
        self._blocks: list[tuple[int, bytes]] = []
        self._size = _FIRST_BLOCK_BYTES
        self._digest, self._hashed = hashlib.sha256(), 0

    def find(self, offset: int) -> tuple[int, bytes]:
        """Return the offset and the bytes of the part that contains a byte; no bytes if none does."""
        for begin, block in self._blocks:
            if begin <= offset < begin + len(block):
                return begin, block
        return offset, b""

    def next_size(self) -> int:
        """Return the bytes of the next request."""
        size, self._size = self._size, min(_MAX_BLOCK_BYTES, 2 * self._size)
        return size

    def add(self, offset: int, block: bytes) -> None:
        """Keep a part instead of the oldest one, unless it is a whole column of a table."""
        if len(block) <= 2 * _MAX_BLOCK_BYTES:
            self._blocks = [*self._blocks[1 - _KEPT_BLOCKS :], (offset, block)]
        if offset == self._hashed:
            self._digest.update(block)
            self._hashed += len(block)

    def whole_digest(self, size: int) -> str | None:
        """Return the digest of the whole file, if all parts were received in order; otherwise None."""
        return self._digest.hexdigest() if self._hashed == size else None


class _RangeReader(io.RawIOBase):
    """A file on the hub as a seekable file."""

    def __init__(self, file: StreamedFile) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.read_at(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def find_streamed(files: Sequence[DataFile]) -> list[StreamedFile]:
    """Return the files that are on the hub."""
    return [file for file in files if isinstance(file, StreamedFile)]


def require_local(file: DataFile, kind: str) -> Path:
    """Return the path of a file. Raise DataError for a file on the hub, of a kind that is only read from a disk."""
    if isinstance(file, Path):
        return file
    raise DataError(f"{file} is {kind}, which cannot be streamed. Fix: download it with --set data.streaming=false.")
