"""Free memory of the GPU in use, and the release of memory before another model is loaded."""

import gc

from lora_chat.system.malloc import trim_memory


def free_gpu_bytes() -> int:
    """Return the bytes that this process can still allocate on its GPU, with PyTorch's unused blocks."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


def release_gpu_memory() -> None:
    """Return the memory of models that are no longer used to the GPU and to the system; do nothing without a GPU.

    The parts of a model and its hooks refer to each other, so a garbage collection is needed. Other processes, such as
    a worker, get the memory only after PyTorch has emptied its cache.
    """
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        trim_memory()


def count_gpu_memory_errors() -> int:
    """Return how often PyTorch has raised an out-of-memory error for the GPU in this process."""
    import torch

    return int(torch.cuda.memory_stats().get("num_ooms", 0)) if torch.cuda.is_available() else 0
