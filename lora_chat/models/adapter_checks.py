"""Checks that layers can carry LoRA, and that an adapter's weights fit a base."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.models.text_layers import find_text_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ALLOWED_DTYPES = ("torch.float32", "torch.float16", "torch.bfloat16")
"""Types of the tensors of an adapter."""
_MAX_ABS_VALUE = 10_000.0
"""Limit of absolute values in an adapter; trained adapters have values below 100."""


def find_target_candidates(model: "torch.nn.Module") -> tuple[str, ...]:
    """Return the last names of the layers that can carry LoRA: every linear layer except the LM head."""
    import torch
    from transformers.pytorch_utils import Conv1D

    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head else None
    names = {
        name.removesuffix(".base_layer").split(".")[-1]  # PEFT's name for a layer that it wraps
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head and ".lora_" not in name
    }
    return tuple(sorted(names))


def check_targets_exist(model: "PreTrainedModel", targets: tuple[str, ...]) -> None:
    """Raise RecipeError for target modules that the model does not have, or that only its towers have."""
    find_text_layers(model).select(targets)
    candidates = find_target_candidates(model)
    unknown = [name for name in targets if name.split(".")[-1] not in candidates]
    if unknown:
        raise RecipeError(
            f"adapter.target_modules: this base has no {', '.join(unknown)}. "
            f"Choose from {', '.join(candidates)}, or `all-linear`."
        )


def check_stored_targets(model: "torch.nn.Module", targets: Sequence[str], name: str) -> None:
    """Raise IntegrityError for modules that cannot carry LoRA, such as a head with the embedding's weights."""
    candidates = find_target_candidates(model)
    if unsupported := [target for target in targets if target.split(".")[-1] not in candidates]:
        raise IntegrityError(
            f"The adapter {name} does not fit this base: {unsupported[0]} is not one of its linear layers, or is "
            "its head, which may share the embedding's weights (huggingface/peft#2018). "
            f"LoRA can be on {', '.join(candidates)}."
        )


def check_stored_parameters(model: "torch.nn.Module", targets: Sequence[str], name: str) -> None:
    """Raise IntegrityError for target parameters that are not weights of experts or routers of the base."""
    import torch

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    suitable = [
        full.replace(".base_layer", "")
        for full, parameter in model.named_parameters()
        if parameter.dim() in (2, 3) and id(parameter) not in embeddings and ".lora_" not in full
    ]
    for target in targets:
        if not any(full == target or full.endswith(f".{target}") for full in suitable):
            raise IntegrityError(
                f"The adapter {name} does not fit this base: it has no weights {target}, which the adapter trains as "
                "weights of experts."
            )


def check_adapter_weights(weights: "dict[str, torch.Tensor]", expected: "dict[str, torch.Tensor]", name: str) -> None:
    """Raise IntegrityError unless an adapter has exactly the expected weights, in their shapes, and all finite."""
    import torch

    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unknown:
        detail = f"missing {missing[0]}" if missing else f"unknown {unknown[0]}"
        raise IntegrityError(
            f"The adapter {name} does not fit this base: {len(missing)} weights missing, "
            f"{len(unknown)} unknown ({detail})."
        )
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise IntegrityError(
                f"The adapter {name} does not fit this base: {key} is {tuple(tensor.shape)}, "
                f"not {tuple(expected[key].shape)}."
            )
        if str(tensor.dtype) not in ALLOWED_DTYPES:
            raise IntegrityError(f"The adapter {name} has {key} as {tensor.dtype}, not as {', '.join(ALLOWED_DTYPES)}.")
        if (other := weights.get(key.replace(".lora_A.", ".lora_B."))) is not None and other.dtype != tensor.dtype:
            raise IntegrityError(f"The adapter {name} has {key} as {tensor.dtype}, its other half as {other.dtype}.")
        if not torch.isfinite(tensor).all():
            raise IntegrityError(f"The adapter {name} has non-finite values in {key}.")
        if tensor.numel() and (largest := float(tensor.abs().max())) > _MAX_ABS_VALUE:
            raise IntegrityError(
                f"The adapter {name} has a value of {largest:.0e} in {key}, which makes a model overflow; "
                f"the limit is {_MAX_ABS_VALUE:,.0f}."
            )
