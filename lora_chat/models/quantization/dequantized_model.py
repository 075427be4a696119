"""A quantised base in 16 bits with the values it computes with, made layer by layer."""

from typing import TYPE_CHECKING, Any

from lora_chat.config.plan import PrecisionPlan
from lora_chat.models.base_model import LocalBase, load_base_model
from lora_chat.models.quantization.dequantize import get_dense_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_QUANTIZED_CLASSES = ("Linear4bit", "Linear8bitLt")


def load_dequantized_model(base: LocalBase, precision: PrecisionPlan) -> "PreTrainedModel":
    """The base in 16 bits with the values that a quantised base computes with, on the CPU.

    Merging into these is exact; into the original weights it would be another function (peft#2321).
    Memory is that of the 16-bit model: each dense layer takes the place of a quantised one. (transformers'
    `dequantize` does the same but turns GPT-2's Conv1D, which keeps (in, out), into Linear.)
    """
    model = load_base_model(base, precision)
    for name in [name for name, module in model.named_modules() if type(module).__name__ in _QUANTIZED_CLASSES]:
        model.set_submodule(name, _to_dense_layer(model.get_submodule(name), model.dtype))
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    return model.to("cpu")


def _to_dense_layer(layer: Any, dtype: Any) -> Any:
    import torch
    from transformers.pytorch_utils import Conv1D

    bias = layer.bias is not None
    with torch.device("meta"):
        if issubclass(layer.source_cls, Conv1D):
            dense: Any = Conv1D(layer.out_features, layer.in_features)
        else:
            dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=bias)
    values = get_dense_weight(layer, dtype).to("cpu")
    values = values.T.contiguous() if isinstance(dense, Conv1D) else values.reshape(dense.weight.shape)
    dense.weight = torch.nn.Parameter(values, requires_grad=False)
    if bias:
        dense.bias = torch.nn.Parameter(layer.bias.detach().to("cpu", dtype), requires_grad=False)
    return dense
