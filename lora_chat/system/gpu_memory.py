"""Free memory of the GPU in use, and the release of memory before another model is loaded."""

import gc
from contextlib import suppress

from lora_chat.system.malloc import trim_memory


def free_gpu_bytes() -> int:
    """Return the bytes that this process can still allocate on its GPU, with PyTorch's unused blocks."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


def release_gpu_memory() -> None:
    """Return the memory of models that are no longer used to the GPU and to the system; do nothing without a GPU."""
    import torch

    if torch.cuda.is_available():
        release_unused_memory()
        trim_memory()


def release_unused_memory() -> None:
    """Free objects that refer to each other, and return their memory to the GPU.

    The parts of a model and its hooks refer to each other, so a garbage collection is needed, which takes up to a
    second. Frozen objects are included, and the rest is frozen again. Other processes, such as a worker, get the memory
    only after PyTorch has emptied its cache. This raises nothing, because it runs after other errors.
    """
    import torch

    was_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if was_frozen:
        gc.freeze()
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # a CUDA error that is pending is raised by the next call, whatever it is
            torch.cuda.empty_cache()


def count_gpu_memory_errors() -> int:
    """Return how often PyTorch has raised an out-of-memory error for the GPU in this process."""
    import torch

    return int(torch.cuda.memory_stats().get("num_ooms", 0)) if torch.cuda.is_available() else 0
