"""Peak memory of the process or of the GPU."""

from lora_chat.system.process_limits import peak_process_bytes


def peak_memory_bytes() -> int:
    """Most memory held so far: of the GPU where one is used, else of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_process_bytes()


def peak_reserved_bytes() -> int:
    """Most memory taken of the device so far, with what its driver holds and what lies between blocks."""
    import torch

    if not torch.cuda.is_available():
        return peak_memory_bytes()
    free, total = torch.cuda.mem_get_info()
    return int(total - free - torch.cuda.memory_reserved() + torch.cuda.max_memory_reserved())
