"""Choice between Triton and PyTorch for TRL's loss on a GPU, which the stock path uses.

Triton compiles its driver with a C compiler and Python.h at its first use, which would be after the base was loaded.
"""

import importlib

import torch

from lora_chat.errors import first_line


def find_triton_problem() -> str:
    """Return why Triton does not start on this machine, in one line; empty if it does. It compiles its driver."""
    try:
        driver = importlib.import_module("triton.runtime.driver").driver

        driver.active.get_current_device()
    except Exception as problem:  # a missing compiler, header, library or card raises errors of many kinds
        return first_line(problem)
    return ""


def use_working_head(device: torch.device) -> str:
    """Let TRL compute its loss without Triton if Triton does not start. Return a note about that, or nothing."""
    if device.type != "cuda":
        return ""
    try:
        from trl.kernels import chunked_logprob
    except ImportError:  # TRL 1.14, the last release for Python 3.10, computes this loss without Triton
        return ""
    if not chunked_logprob._use_triton(device):
        return ""
    problem = find_triton_problem()
    if not problem:
        return ""
    # TRL has no setting for it; it asks this flag at every call:
    # https://github.com/huggingface/trl/blob/v1.16.0/trl/kernels/chunked_logprob.py
    chunked_logprob._TRITON_AVAILABLE = False
    return (
        f"TRL's loss runs without Triton, because Triton does not start ({problem}). Training is slower, with the "
        "same result. Fix: install a C compiler and Python's headers."
    )
