"""A quantized base as a 16-bit model with the same weights, converted layer by layer."""

from typing import TYPE_CHECKING, Any

from lora_chat.config.plan import PrecisionPlan
from lora_chat.models.base_model import LocalBase, load_base_model
from lora_chat.models.quantization.coverage import QUANTIZED_CLASSES
from lora_chat.models.quantization.dequantize import get_dense_weight
from lora_chat.models.quantization.quantized_base import remove_quantization_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_dequantized_model(base: LocalBase, precision: PrecisionPlan) -> "PreTrainedModel":
    """Load a quantized base and return it on the CPU in 16 bits, with the dequantized weights.

    Merging an adapter into these weights is exact. Merging into the original weights changes the outputs (peft#2321).
    The memory is the size of the 16-bit model, because each dense layer replaces a quantized one. Transformers'
    `dequantize` is not used, because it turns GPT-2's Conv1D, which stores (in, out), into Linear.
    """
    if precision.mode == "none":  # there is nothing to convert, so a GPU is not needed
        precision = precision.model_copy(update={"device": "cpu"})
    model = load_base_model(base, precision)
    for name in [name for name, module in model.named_modules() if type(module).__name__ in QUANTIZED_CLASSES]:
        model.set_submodule(name, _to_dense_layer(model.get_submodule(name), model.dtype))
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
        _forget_quantized_names(model)
    remove_quantization_config(model.config)
    return model.to("cpu")


def _forget_quantized_names(model: Any) -> None:
    """Remove the conversions with which Transformers read quantized files, because saving reverses conversions.

    Those of bitsandbytes have no reverse (NotImplementedError in `ConversionOps.reverse_op`, core_model_loading.py).
    """
    conversions = getattr(model, "_weight_conversions", None)
    if conversions:
        model._weight_conversions = [
            conversion
            for conversion in conversions
            if not any(hasattr(operation, "hf_quantizer") for operation in getattr(conversion, "operations", ()))
        ]


def _to_dense_layer(layer: Any, dtype: "torch.dtype") -> "torch.nn.Module":
    """Return a Linear or Conv1D with the dequantized weight and the bias of a quantized layer."""
    import torch
    from transformers.pytorch_utils import Conv1D

    bias = layer.bias is not None
    with torch.device("meta"):
        if issubclass(layer.source_cls, Conv1D):
            dense: Conv1D | torch.nn.Linear = Conv1D(layer.out_features, layer.in_features)
        else:
            dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=bias)
    values = get_dense_weight(layer, dtype).to("cpu")
    values = values.T.contiguous() if isinstance(dense, Conv1D) else values.reshape(dense.weight.shape)
    dense.weight = torch.nn.Parameter(values, requires_grad=False)
    if bias:
        dense.bias = torch.nn.Parameter(layer.bias.detach().to("cpu", dtype), requires_grad=False)
    return dense
