"""A memory limit for training on a CPU, so that too large allocations raise errors, and detection of those errors."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_chat.system.memory_usage import free_memory_bytes

# "could not create a primitive" is oneDNN's message for a scratchpad that it could not allocate.
_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad alloc",
    "could not create a primitive",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out; on a CPU PyTorch raises RuntimeError for that."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY_TEXTS)


@contextmanager
def limited_memory(processes: int = 1) -> Iterator[None]:
    """Limit memory to the free amount, because Linux would kill the process otherwise; do nothing on other systems.

    Each of several processes of this machine gets an equal part of what is free.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + free_memory_bytes() // processes
    limits = [size for size in (limit, soft, hard) if size != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """Return the bytes that RLIMIT_DATA counts (getrlimit(2), proc(5)); psutil adds the stack to them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmData:")).split()[1])
