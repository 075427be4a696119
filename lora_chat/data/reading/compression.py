"""Open compressed data files: gzip, bzip2, xz, Zstandard and zip with one file, recognised by their first bytes.

Every reader stops at a limit, because a few bytes can decompress to any size.
"""

import bz2
import gzip
import io
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from lora_chat.data.reading.size_limits import max_decompressed_bytes
from lora_chat.data.reading.streamed_file import DataFile, require_local
from lora_chat.data.reading.zip_kinds import describe_zip
from lora_chat.errors import DataError
from lora_chat.system.sanitize import sanitize_line

_MAX_XZ_MEMORY_BYTES = 1 << 29
"""Most memory for the dictionary of an xz file; `xz -9` needs 65 MiB."""
_MAX_DIRECTORY_BYTES = 1 << 22
_INPUT_BYTES = 1 << 17
_MAX_SHOWN_MEMBERS = 8


class _Decompressor(Protocol):
    """Decompressor of one stream, as in `bz2` and `lzma`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _ReadableFile(Protocol):
    """A file that can only be read and closed."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Compression:
    """A kind of compressed file; one entry of `COMPRESSIONS`."""

    name: str
    magic: re.Pattern[bytes]
    open_file: Callable[[DataFile], _ReadableFile]


def find_compression(head: bytes) -> Compression | None:
    """Return the compression that the first bytes of a file show, or None."""
    return next((compression for compression in COMPRESSIONS if compression.magic.match(head)), None)


def open_decompressed(path: DataFile) -> IO[bytes]:
    """Open a file for reading, decompressed if it is compressed.

    DataError is raised, now or while it is read, for a damaged file, and for one that decompresses to far more than
    real data does.
    """
    with path.open("rb") as file:
        compression = find_compression(file.read(16))
    if compression is None:
        return path.open("rb")
    with _explain_damage(path):
        return io.BufferedReader(_BoundedReader(path, compression.open_file(path)), _INPUT_BYTES)


class _explain_damage:
    """Raise DataError in place of the errors of decompressors."""

    def __init__(self, path: DataFile) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, lzma.LZMAError) and "memory" in str(error).lower():
            raise DataError(
                f"Decompressing {self._path} takes too much memory. Fix: decompress it yourself."
            ) from error
        is_damage = isinstance(error, EOFError | zlib.error | lzma.LZMAError | zipfile.BadZipFile | ValueError)
        if is_damage or (isinstance(error, OSError) and error.errno is None):  # bz2, gzip and Arrow set no number
            raise DataError(f"Cannot unpack {self._path}: it is damaged or truncated.") from error


class _BoundedReader(io.RawIOBase):
    """A decompressed file that raises DataError when too much is read from it."""

    def __init__(self, path: DataFile, file: _ReadableFile) -> None:
        self._path, self._file = path, file
        self._limit = max_decompressed_bytes(path)
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        with _explain_damage(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._count += len(data)
        if self._count > self._limit:
            raise DataError(
                f"{self._path} decompresses to more than {self._limit:,} bytes. "
                "Fix: if that is intended, decompress it yourself."
            )
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _StreamReader:
    """Reader of one or several compressed streams in a file."""

    def __init__(self, path: DataFile, make: Callable[[], _Decompressor]) -> None:
        self._file = path.open("rb")
        self._make = make
        self._decompressor = make()
        self._pending = b""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; empty at the end. Raises EOFError for a truncated file."""
        while True:
            if self._decompressor.eof:
                self._pending = (self._decompressor.unused_data or self._file.read(_INPUT_BYTES)).lstrip(b"\0")
                if not self._pending:
                    return b""
                self._decompressor = self._make()
            data = self._pending
            self._pending = b""
            if not data and self._decompressor.needs_input:
                data = self._file.read(_INPUT_BYTES)
                if not data:
                    raise EOFError("the file is truncated")
            output = self._decompressor.decompress(data, size)
            if output:
                return output

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open_gzip(path: DataFile) -> _ReadableFile:
    return gzip.open(path if isinstance(path, Path) else path.open("rb"))


def _open_bzip2(path: DataFile) -> _ReadableFile:
    return _StreamReader(path, bz2.BZ2Decompressor)


def _open_xz(path: DataFile) -> _ReadableFile:
    return _StreamReader(path, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _MAX_XZ_MEMORY_BYTES))


def _open_zstandard(path: DataFile) -> _ReadableFile:
    """Open a Zstandard file with Arrow, whose decoder refuses windows above 128 MiB."""
    import pyarrow

    stream: _ReadableFile = pyarrow.CompressedInputStream(
        pyarrow.OSFile(str(require_local(path, "compressed with Zstandard"))), "zstd"
    )
    return stream


def _open_zip(file: DataFile) -> _ReadableFile:
    """Open the one file in a zip archive; raises DataError for another archive, by name."""
    path = require_local(file, "a zip archive")
    _check_directory_size(path)
    archive = zipfile.ZipFile(path)
    try:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        described = describe_zip(names)
        if described:
            raise DataError(f"{path} is {described}.")
        members = [i for i in archive.infolist() if not i.is_dir() and not _is_hidden(i.filename)]
        if len(members) != 1:
            shown = ", ".join(sanitize_line(info.filename, 60) for info in members[:_MAX_SHOWN_MEMBERS])
            more = f" and {len(members) - _MAX_SHOWN_MEMBERS} more" if len(members) > _MAX_SHOWN_MEMBERS else ""
            has = f"{len(members)} files: {shown}{more}" if members else "no file"
            raise DataError(f"The archive {path} has {has}. Fix: unpack it, and name the data files of them.")
        if members[0].flag_bits & 1:
            raise DataError(f"The archive {path} is encrypted. Fix: unpack it.")
        return archive.open(members[0])
    except NotImplementedError as error:
        raise DataError(f"The archive {path} uses a compression that is not read. Fix: unpack it.") from error
    finally:
        archive.close()  # the file of an open member stays open


def _check_directory_size(path: Path) -> None:
    """Raise DataError for an archive with thousands of files, whose directory alone would take much memory."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - (1 << 16) - 22))
        tail = file.read()
    position = tail.rfind(b"PK\5\6")
    if position < 0 or len(tail) < position + 22:
        raise zipfile.BadZipFile("no end of the directory")
    (directory_bytes,) = struct.unpack_from("<I", tail, position + 12)
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise DataError(f"The archive {path} has thousands of files. Fix: unpack it, and name the data files of them.")


def _is_hidden(name: str) -> bool:
    """Return whether a file in an archive was added by a system, such as __MACOSX/._train.jsonl."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith(".")


COMPRESSIONS = (
    Compression("gzip", re.compile(rb"\x1f\x8b"), _open_gzip),
    Compression("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8)"), _open_bzip2),
    Compression("xz", re.compile(rb"\xfd7zXZ\x00"), _open_xz),
    Compression("Zstandard", re.compile(rb"\x28\xb5\x2f\xfd"), _open_zstandard),
    Compression("zip", re.compile(rb"PK\x03\x04"), _open_zip),
    Compression("zip", re.compile(rb"PK\x05\x06"), _open_zip),  # without files
)
"""Every kind of compressed file that is read."""
