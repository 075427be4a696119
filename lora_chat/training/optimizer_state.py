"""The optimizer's state from a checkpoint, compared with the parameters that it belongs to before the first step."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_chat.errors import IntegrityError

_BLOCK_SIZE = 256
"""Values that share one scale in bitsandbytes' 8-bit optimizers (`bitsandbytes/optim/optimizer.py`, init_state)."""
_CODEBOOK_SIZE = 256
"""Entries of the tables to which 8-bit values point."""


def check_optimizer_state(optimizer: Any, folder: Path) -> None:
    """Raise IntegrityError unless the states that were read have the shapes of their parameters.

    Fused optimizers trust these shapes: with other ones they read and write memory that is not theirs. A parameter
    that never had a gradient, such as one of an expert that was never chosen, has no state.
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


def _parameters(optimizer: Any) -> Iterator[Any]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _expected_shapes(state: Mapping[str, Any], parameter: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape that each tensor of a parameter's state must have."""
    shape = tuple(parameter.shape)
    if "state1" not in state:
        return {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
    shapes = {"state1": shape, "state2": shape}
    if getattr(state["state1"], "itemsize", 0) != 1:  # small parameters keep 32 bits
        return shapes
    scales = -(-parameter.numel() // _BLOCK_SIZE)
    return shapes | {"absmax1": (scales,), "absmax2": (scales,), "qmap1": (_CODEBOOK_SIZE,), "qmap2": (_CODEBOOK_SIZE,)}


def _integrity_error(folder: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"The checkpoint {folder} cannot be continued: in optimizer.pt, {reason}.\n"
        "Delete that folder to continue from the one before it, or train again without --resume."
    )
