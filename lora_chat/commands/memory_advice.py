"""The message of each command that runs out of memory."""

import re
import sys

from lora_chat.errors import LoraChatError, OutOfMemoryError
from lora_chat.system.device_choice import VARIABLE_CPU_OPTION

_USE_CPU = f"compute on the CPU ({VARIABLE_CPU_OPTION})"
_END_PROGRAMS = "end other programs that use the memory"
_FIXES = {
    "chat": f"start a shorter conversation, load the base with --quantization 4bit, {_END_PROGRAMS}",
    "generate": f"write fewer or shorter texts, load the base with --quantization 4bit, {_END_PROGRAMS}",
    "eval": f"{_END_PROGRAMS}, give shorter dialogues with --data",
    **dict.fromkeys(("merge", "export", "pack", "verify"), _END_PROGRAMS),
}
"""Advice by command, for commands that use a finished adapter and so cannot change the settings of training."""
_DEFAULT_FIX = f"{_END_PROGRAMS}, choose a smaller base, or --set quantization.mode=4bit"
_GPU_LIBRARY = re.compile(r"CUDA|CUBLAS|CUDNN|HIP|ROCM", re.IGNORECASE)
_ALLOCATION = re.compile(r"[Tt]ried to allocate ([\d.]+ ?\w+)")


def explain_out_of_memory(error: BaseException, command: str) -> OutOfMemoryError | None:
    """Return the message for an error of a command that ran out of memory, or None for any other error.

    An error during the cleanup after an out-of-memory error has that error as its context, and gets the same message.
    """
    if isinstance(error, OutOfMemoryError):
        return (
            OutOfMemoryError(error.message, _choose_fix(error, command, error.default_fix))
            if error.default_fix
            else error
        )
    cause = _find_memory_error(error)
    if cause is None:
        return None
    allocation = _ALLOCATION.search(str(cause))
    size = f" ({allocation[1]} could not be allocated)" if allocation else ""
    return OutOfMemoryError(
        f"Out of memory{' on the GPU' if _is_from_gpu(cause) else ''}{size}.", _choose_fix(cause, command, _DEFAULT_FIX)
    )


def _find_memory_error(error: BaseException) -> BaseException | None:
    """Return the first out-of-memory error in the chain of an error's causes and contexts."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, LoraChatError):
            return None
        if _is_out_of_memory(current):
            return current
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, without importing PyTorch."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from lora_chat.system.memory_limit import is_out_of_memory

    return is_out_of_memory(error)


def _is_from_gpu(error: BaseException) -> bool:
    """Return whether a GPU ran out of memory, or may have done so while a base was loaded."""
    if "torch" not in sys.modules or isinstance(error, MemoryError):
        return False
    import torch

    if isinstance(error, OutOfMemoryError):
        return torch.cuda.is_available()
    return isinstance(error, torch.OutOfMemoryError) or bool(_GPU_LIBRARY.search(str(error)))


def _choose_fix(error: BaseException, command: str, default: str) -> str:
    """Return the advice of a command; on a GPU it can use the CPU instead."""
    fix = _FIXES.get(command)
    if fix is None:
        return default
    return f"{fix}, or {_USE_CPU}." if _is_from_gpu(error) else f"{fix}."
