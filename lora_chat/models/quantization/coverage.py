"""The share of a base's weights that bitsandbytes quantizes, from the layers that Transformers itself would replace."""

from typing import TYPE_CHECKING, Any

from lora_chat.config.plan import BYTES_BY_DTYPE, PrecisionPlan
from lora_chat.config.stored_quantization import QuantizationCoverage
from lora_chat.models.quantization.quantized_base import make_quantization_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QUANTIZED_CLASSES = ("Linear4bit", "Linear8bitLt")
"""Classes of bitsandbytes' layers."""


def with_coverage(precision: PrecisionPlan, skeleton: "PreTrainedModel") -> PrecisionPlan:
    """Return the precision with the number of weights that its mode quantizes; unchanged if it quantizes none.

    The model on the meta device is changed.
    """
    if precision.mode == "none":
        return precision
    return precision.model_copy(update={"coverage": measure_coverage(skeleton, precision)})


def describe_coverage(precision: PrecisionPlan) -> str:
    """Return one sentence about the share of weights that is quantized; an empty text if none is."""
    if precision.coverage is None:
        return ""
    return precision.coverage.describe(precision.mode, 8 * BYTES_BY_DTYPE[precision.dtype])


def measure_coverage(skeleton: "PreTrainedModel", precision: PrecisionPlan) -> QuantizationCoverage:
    """Count the weights that a mode quantizes and those that stay as they are.

    The model on the meta device is changed: its layers are replaced as they are when weights load.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    linears = {
        name: module.weight.numel()
        for name, module in skeleton.named_modules()
        if isinstance(module, Conv1D) or type(module).__name__ == "Linear"
    }
    head = skeleton.get_output_embeddings()
    total = sum(parameter.numel() for parameter in skeleton.parameters())
    layers = quantized_layers(skeleton, precision)
    quantized = sum(layer.in_features * layer.out_features for layer in layers.values())
    left_out = sum(
        count for name, count in linears.items() if name not in layers and skeleton.get_submodule(name) is not head
    )
    experts = sum(
        parameter.numel()
        for module in skeleton.modules()
        if not isinstance(module, torch.nn.Conv1d)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() == 3
    )
    return QuantizationCoverage(
        quantized=quantized,
        experts=experts,
        layers=min(left_out, total - quantized - experts),
        other=max(0, total - quantized - experts - left_out),
    )


def quantized_layers(skeleton: "PreTrainedModel", precision: PrecisionPlan) -> dict[str, Any]:
    """Replace the layers of a model on the meta device as Transformers does, and return the quantized ones by name."""
    from transformers.quantizers.auto import AutoHfQuantizer

    stored = precision.stored
    as_recipe = precision.model_copy(update={"stored": None})
    config = make_quantization_options(as_recipe, None if stored else skeleton)["quantization_config"]
    if stored is not None and stored.skipped_modules is not None:
        config.llm_int8_skip_modules = list(stored.skipped_modules)
    AutoHfQuantizer.from_config(config, pre_quantized=False).preprocess_model(skeleton, device_map={"": "cpu"})
    return {name: layer for name, layer in skeleton.named_modules() if type(layer).__name__ in QUANTIZED_CLASSES}
