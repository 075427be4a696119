"""Limits on data files: far above real data, and low enough that a malicious file ends in a message."""

import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from lora_chat.data.reading.streamed_file import DataFile
from lora_chat.errors import DataError
from lora_chat.system.memory_usage import address_space_bytes

MAX_ROW_BYTES = 1 << 25
"""Largest line, cell, list element or table row, in bytes; 32 MiB is about 8 million tokens."""
MAX_COLUMNS = 10_000
"""Most columns of a table."""
MAX_FILES = 100_000
"""Most files of one source."""
ALWAYS_ALLOWED_BYTES, MAX_COMPRESSION_RATIO = 1 << 31, 200
"""Decompressed bytes that every file may have, and the highest ratio to its stored bytes beyond that."""
PARQUET_MEMORY_BYTES = 1 << 32
"""Memory for decoding a batch of Parquet, in bytes; a page can claim 2 GiB with few stored bytes."""
MAX_BLANK_LINES = 1_000_000
"""Most consecutive blank lines."""
TOO_MANY_BLANKS_MESSAGE = f"begins more than {MAX_BLANK_LINES:,} blank lines; nothing after them is read"
TOO_LONG_MESSAGE = f"is longer than {MAX_ROW_BYTES >> 20} MiB; nothing after it is read"


class RowTooLongError(ValueError):
    """A line exceeds MAX_ROW_BYTES, so that reading stops there."""

    def __init__(self, line: int) -> None:
        super().__init__(TOO_LONG_MESSAGE)
        self.line = line


def check_regular_file(path: DataFile) -> None:
    """Raise DataError for a pipe, a device, a folder or a sparse file; OSError if the file is inaccessible."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path} is a folder, not a file.")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a device or a pipe, not a file. Fix: write its content to a file first.")
    stored = getattr(status, "st_blocks", 0) * 512  # 0 if the file system does not count blocks
    if stored and status.st_size > max(ALWAYS_ALLOWED_BYTES, MAX_COMPRESSION_RATIO * stored):
        raise DataError(f"{path} is a sparse file: {status.st_size:,} bytes, of which {stored:,} are stored.")


def max_decompressed_bytes(path: DataFile) -> int:
    """Return the most bytes to which a compressed file may decompress."""
    return max(ALWAYS_ALLOWED_BYTES, MAX_COMPRESSION_RATIO * path.stat().st_size)


def read_bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file with their line feeds; raises RowTooLongError for a line above MAX_ROW_BYTES."""
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise RowTooLongError(number)
        yield line


@contextmanager
def limit_memory_growth() -> Iterator[None]:
    """Make allocations fail once the address space has grown by PARQUET_MEMORY_BYTES (Linux only)."""
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = min(
        part for part in (address_space_bytes() + PARQUET_MEMORY_BYTES, soft, hard) if part != resource.RLIM_INFINITY
    )
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
