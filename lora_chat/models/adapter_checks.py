"""Whether layers can carry LoRA, and whether an adapter's weights have their places in a base."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_chat.errors import IntegrityError, RecipeError

if TYPE_CHECKING:
    import torch

_ALLOWED_DTYPES = ("torch.float32", "torch.float16", "torch.bfloat16")
_MAX_ABS_VALUE = 10_000.0
"""Largest value in an adapter; those of trained ones are below 100."""


def find_target_candidates(model: "torch.nn.Module") -> tuple[str, ...]:
    """Last names of the layers that can carry LoRA: every linear layer except the LM head."""
    import torch
    from transformers.pytorch_utils import Conv1D

    find_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    names = {
        name.removesuffix(".base_layer").split(".")[-1]  # PEFT's name for what it wraps
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head and ".lora_" not in name
    }
    return tuple(sorted(names))


def check_targets_exist(model: "torch.nn.Module", targets: tuple[str, ...]) -> None:
    """Raise RecipeError for target modules that the model does not have."""
    candidates = find_target_candidates(model)
    unknown = [name for name in targets if name.split(".")[-1] not in candidates]
    if unknown:
        raise RecipeError(
            f"adapter.target_modules: this base has no {', '.join(unknown)}. "
            f"Choose from {', '.join(candidates)}, or `all-linear`."
        )


def check_stored_targets(model: Any, targets: Sequence[str], name: str) -> None:
    """Raise IntegrityError for modules that carry no LoRA here: heads and embeddings may share their weights."""
    candidates = find_target_candidates(model)
    if unsupported := [target for target in targets if target.split(".")[-1] not in candidates]:
        raise IntegrityError(
            f"The adapter {name} does not fit this base: {unsupported[0]} is no linear layer of it, or its head, whose "
            f"weights may be the embedding's too (huggingface/peft#2018). LoRA can be on {', '.join(candidates)}."
        )


def check_adapter_weights(weights: "dict[str, torch.Tensor]", expected: "dict[str, torch.Tensor]", name: str) -> None:
    """Raise IntegrityError unless an adapter has just the weights expected, in their shapes, and all numbers."""
    import torch

    missing, foreign = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or foreign:
        detail = f"missing {missing[0]}" if missing else f"foreign {foreign[0]}"
        raise IntegrityError(
            f"The adapter {name} does not fit this base: {len(missing)} weights missing, "
            f"{len(foreign)} foreign ({detail})."
        )
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise IntegrityError(
                f"The adapter {name} does not fit this base: {key} is {tuple(tensor.shape)}, "
                f"not {tuple(expected[key].shape)}."
            )
        if str(tensor.dtype) not in _ALLOWED_DTYPES:
            raise IntegrityError(
                f"The adapter {name} holds {key} as {tensor.dtype}, not as {', '.join(_ALLOWED_DTYPES)}."
            )
        if (other := weights.get(key.replace(".lora_A.", ".lora_B."))) is not None and other.dtype != tensor.dtype:
            raise IntegrityError(f"The adapter {name} holds {key} as {tensor.dtype}, its other half as {other.dtype}.")
        if not torch.isfinite(tensor).all():
            raise IntegrityError(f"The adapter {name} holds values that are not numbers, in {key}.")
        if tensor.numel() and (largest := float(tensor.abs().max())) > _MAX_ABS_VALUE:
            raise IntegrityError(
                f"The adapter {name} holds a value of {largest:.0e} in {key}, at which a model overflows; "
                f"at most {_MAX_ABS_VALUE:,.0f} is read."
            )
