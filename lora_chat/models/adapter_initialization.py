"""Starts of an adapter that are computed from the base's weights: PiSSA, OLoRA and LoftQ.

PEFT trains PiSSA and OLoRA on a base without the start, W - s B0 A0, so that the adapter does not fit the original
base. Here the base stays as it is, in every quantization, and the adapter is [A; A0] and [B, -B0], whose second half is
not trained: W + s (B A - B0 A0) is the same function, and plain LoRA at any time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.config.lora_variants import AdapterInitialization, find_initialization
from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.quantization.dequantize import get_dense_weight

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_MAX_CONVERSION_ERROR = 1e-3
"""Largest relative error of a converted update, in the Frobenius norm. Rounding to fp32 gives about 1e-6."""


def check_initialization(
    shapes: Mapping[str, tuple[int, int]], section: AdapterSection, settings: LoraSettings
) -> None:
    """Raise RecipeError for a rank that exceeds the size of a layer, whose weights have no more components.

    `shapes` are the numbers of outputs and inputs of the adapted layers.
    """
    initialization = find_initialization(section.initialization)
    if not initialization.decomposes_weights:
        return
    for name, shape in shapes.items():
        if settings.rank_of(name) > min(shape):
            raise RecipeError(
                f"adapter.rank: {initialization.title} takes {settings.rank_of(name)} components from each layer, and "
                f"{name} has only {min(shape)}. Fix: --set adapter.rank={min(min(s) for s in shapes.values())}."
            )


def double_rank(settings: LoraSettings, initialization: AdapterInitialization) -> LoraSettings:
    """Return the settings of an adapter that also subtracts its start, with the same scale of the update."""
    factor = initialization.rank_factor
    scale = factor**0.5 if any(variant.scales_by_sqrt_rank for variant in settings.special_variants) else factor
    return replace(
        settings,
        rank=settings.rank * factor,
        alpha=settings.alpha * scale,
        rank_pattern=tuple((name, rank * factor) for name, rank in settings.rank_pattern),
        alpha_pattern=tuple((name, alpha * scale) for name, alpha in settings.alpha_pattern),
    )


def iterate_lora_layers(model: "torch.nn.Module") -> Iterator[tuple[str, Any]]:
    """Yield the name and the PEFT layer of each adapted layer."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            yield name.removeprefix("base_model.model."), module


@torch.no_grad()
def initialize_adapter(
    model: "PeftModel", initialization: AdapterInitialization, original: "PreTrainedModel | None"
) -> None:
    """Set the start of every layer. `original` is the unquantized base, for a start that fits the residual."""
    for name, layer in iterate_lora_layers(model):
        weight = _read_weight(layer.base_layer, layer.fan_in_fan_out)
        if initialization.fits_residual:
            assert original is not None
            unquantized = _read_weight(original.get_submodule(name), layer.fan_in_fan_out)
            weight = unquantized.to(weight.device) - weight
        scale = layer.scaling["default"]
        rank = layer.r["default"] // initialization.rank_factor
        a, b = _decompose(weight, str(initialization.peft_value), rank, scale)
        if initialization.subtracts_start:
            a, b = torch.cat([a, a]), torch.cat([b, -b], dim=1)
        for parameter, value in ((layer.lora_A["default"].weight, a), (layer.lora_B["default"].weight, b)):
            if parameter.shape != value.shape or not bool(torch.isfinite(value).all()):
                raise IntegrityError(f"{initialization.title}: the weights of {name} cannot be decomposed.")
            parameter.data = value.to(parameter.device, torch.float32).contiguous()


def _read_weight(layer: "torch.nn.Module", transposed: bool) -> torch.Tensor:
    """Return a copy of the dense weight (out, in) of a layer in fp32."""
    weight = get_dense_weight(layer, torch.float32).detach()
    return (weight.T if transposed else weight).clone(memory_format=torch.contiguous_format)


def _decompose(weight: torch.Tensor, peft_value: str, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the start A (rank, in) and B (out, rank) that PEFT computes for a weight and a scale of the update."""
    from peft import LoraConfig, inject_adapter_in_model

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    config = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=["0"], init_lora_weights=peft_value)
    adapted: Any = inject_adapter_in_model(config, torch.nn.Sequential(layer))[0]
    return adapted.lora_A["default"].weight.detach(), adapted.lora_B["default"].weight.detach()


@torch.no_grad()
def convert_to_plain_lora(model: "PeftModel") -> float:
    """Replace [A; A0] and [B, -B0] by balanced matrices of the same product, and return the largest relative error.

    The two halves nearly cancel, so rounding them to 16 bits would lose most of what was trained. Raises
    IntegrityError if a product differs.
    """
    worst = 0.0
    for name, layer in iterate_lora_layers(model):
        a_parameter, b_parameter = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        a, b = a_parameter.detach().double(), b_parameter.detach().double()
        new_a, new_b = _balance(a, b)
        a_parameter.data = new_a.to(a_parameter.dtype).contiguous()
        b_parameter.data = new_b.to(b_parameter.dtype).contiguous()
        update = b @ a
        error = float((b_parameter.double() @ a_parameter.double() - update).norm())
        norm = float(update.norm())
        relative = error / norm if norm else error
        if not relative <= _MAX_CONVERSION_ERROR:
            raise IntegrityError(
                f"The adapter could not be converted to plain LoRA: the update of {name} has a relative error "
                f"of {relative:.1e}, and the limit is {_MAX_CONVERSION_ERROR:g}. "
                "Fix: train with adapter.initialization=default."
            )
        worst = max(worst, relative)
    return worst


def _balance(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrices of the same shapes and the same product b @ a, both of the norm that the product needs."""
    rank = a.shape[0]
    # b = q_b r_b and a = (q_a r_a)^T, so the product is q_b (r_b r_a^T) q_a^T.
    q_a, r_a = torch.linalg.qr(a.T)
    q_b, r_b = torch.linalg.qr(b)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s.sqrt()
    balanced_a, balanced_b = root[:, None] * (vh @ q_a.T), (q_b @ u) * root
    missing = rank - balanced_a.shape[0]  # a layer smaller than the rank has fewer components
    return (
        torch.nn.functional.pad(balanced_a, (0, 0, 0, missing)),
        torch.nn.functional.pad(balanced_b, (0, missing)),
    )
