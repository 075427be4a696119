"""Settings of glibc that decide whether freed memory stays with the process; other C libraries are unchanged."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep_freed_memory(size: int = 2**31 - 1) -> None:
    """Let glibc keep freed blocks, because otherwise it maps and clears large ones again for every operation."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            libc.mallopt(option, size)


def trim_memory() -> None:
    """Return the memory that is free now to the system; later settings stay."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def release_freed_memory() -> None:
    """Return freed blocks of 2 MB or more to the system immediately, because blocks that are never reused leave holes.

    Growing caches and the replacement of a model's layers one by one free such blocks. By default glibc keeps large
    blocks after the first one has been freed.
    """
    if platform.libc_ver()[0] == "glibc":
        keep_freed_memory(2**21)
        trim_memory()
