"""Whether freed blocks stay with the process, in glibc; other C libraries are left as they are."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep_freed_memory(size: int = 2**31 - 1) -> None:
    """Let glibc keep freed blocks: it maps and clears large ones afresh for every operation otherwise."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            libc.mallopt(option, size)


def trim_memory() -> None:
    """Have what is free now go back, whatever is kept later."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def release_freed_memory() -> None:
    """Have large blocks that are freed, from 2 MB on, go back at once: those that are never reused only leave holes.

    So it is with growing caches, and where a model's layers are replaced one by one. By itself glibc learns, from the
    first large block that is freed, to keep the next ones.
    """
    if platform.libc_ver()[0] == "glibc":
        keep_freed_memory(2**21)
        trim_memory()
