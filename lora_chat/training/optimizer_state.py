"""Check of a resumed optimizer state against its parameters, before the first step."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import IntegrityError

if TYPE_CHECKING:
    import torch

_BLOCK_SIZE = 256
"""Number of values per scale in bitsandbytes' 8-bit optimizers (`bitsandbytes/optim/optimizer.py`, init_state)."""
_CODEBOOK_SIZE = 256
"""Number of entries in the lookup tables of 8-bit values."""


def check_optimizer_state(optimizer: "torch.optim.Optimizer", folder: Path) -> None:
    """Raise IntegrityError unless each state has the shape of its parameter.

    Fused optimizers trust these shapes and access memory out of bounds if they are wrong. A parameter that never had
    a gradient has no state, for example one of an expert that was never chosen.
    """
    if not any(optimizer.state.get(parameter) for parameter in _parameters(optimizer)):
        raise _integrity_error(folder, "no parameter has a state")
    for number, parameter in enumerate(_parameters(optimizer)):
        state = optimizer.state.get(parameter)
        if not state:
            continue
        for name, shape in _expected_shapes(state, parameter).items():
            tensor = state.get(name)
            if tuple(getattr(tensor, "shape", ())) != shape or not hasattr(tensor, "shape"):
                raise _integrity_error(folder, f"{name} of parameter {number} does not have the shape {shape}")


def _parameters(optimizer: "torch.optim.Optimizer") -> "Iterator[torch.Tensor]":
    """Yield the parameters of all groups."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _expected_shapes(state: Mapping[str, object], parameter: "torch.Tensor") -> dict[str, tuple[int, ...]]:
    """Return the shape that each tensor of a parameter's state must have."""
    shape = tuple(parameter.shape)
    if "state1" not in state:
        return {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
    shapes = {"state1": shape, "state2": shape}
    if getattr(state["state1"], "itemsize", 0) != 1:  # bitsandbytes keeps the states of small parameters in 32 bits
        return shapes
    scales = -(-parameter.numel() // _BLOCK_SIZE)
    return shapes | {"absmax1": (scales,), "absmax2": (scales,), "qmap1": (_CODEBOOK_SIZE,), "qmap2": (_CODEBOOK_SIZE,)}


def _integrity_error(folder: Path, reason: str) -> IntegrityError:
    """Return the error for an optimizer state that does not fit."""
    return IntegrityError(
        f"The checkpoint {folder} cannot be resumed: in optimizer.pt, {reason}.\n"
        "Fix: delete that folder to continue from the checkpoint before it, or train again without --resume."
    )
