"""Check that the weights in a base's files have the format that its config declares, layer by layer.

Transformers loads 16-bit weights into layers of bitsandbytes and integers into plain layers without a message.
"""

from collections.abc import Mapping
from copy import deepcopy
from math import prod
from typing import TYPE_CHECKING, Any

from lora_chat.config.plan import PrecisionPlan
from lora_chat.config.stored_quantization import StoredQuantization
from lora_chat.errors import IntegrityError
from lora_chat.models.quantization.coverage import quantized_layers
from lora_chat.system.safetensors_header import TensorHeader
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PACKED_DTYPES = ("U8", "I8")
_FP8_DTYPES = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


def check_layer_formats(
    name: str, stored: StoredQuantization, headers: Mapping[str, TensorHeader], skeleton: "PreTrainedModel"
) -> None:
    """Raise IntegrityError unless the files of a bitsandbytes base have exactly the quantized layers of its config.

    `skeleton` is the base's model on the meta device.
    """
    plain = PrecisionPlan(device="cpu", mode=stored.mode, double_quantization=False, dtype="bfloat16")
    layers = quantized_layers(deepcopy(skeleton), plain.model_copy(update={"stored": stored}))
    prefix = f"{skeleton.base_model_prefix}."
    by_key = {f"{layer}.weight": module for layer, module in layers.items()}
    by_key |= {key.removeprefix(prefix): module for key, module in by_key.items()}
    wrong = [key for key, module in by_key.items() if key in headers and not _fits(headers[key], module, stored.mode)]
    wrong += [
        key
        for key, header in headers.items()
        if key.endswith(".weight") and header.dtype in _PACKED_DTYPES and key not in by_key
    ]
    if wrong:
        first = headers[wrong[0]]
        raise IntegrityError(
            f"The config of {name} declares weights in {stored.title}, and {len(wrong)} weights in its files have "
            f"another format ({sanitize_line(wrong[0], 120)}: {first.dtype}, {'x'.join(map(str, first.shape))}).\n"
            "Fix: use the config.json and the files of one base: copy or download it again."
        )


def check_no_fp8(name: str, headers: Mapping[str, TensorHeader]) -> None:
    """Raise IntegrityError for weights in FP8 in a base whose config declares no quantization."""
    if keys := [key for key, header in headers.items() if header.dtype in _FP8_DTYPES]:
        raise IntegrityError(
            f"{len(keys)} weights in the files of {name} are in FP8 ({sanitize_line(keys[0], 120)}, ...), and its "
            "config.json has no quantization_config that says how they are scaled.\n"
            "Fix: copy the config.json of the base again, or use the unquantized base."
        )


def _fits(header: TensorHeader, layer: Any, mode: str) -> bool:
    """Return whether a tensor has the dtype and the size of a quantized layer's weight."""
    count = layer.in_features * layer.out_features
    if mode == "8bit":
        return header.dtype == "I8" and prod(header.shape) == count
    return header.dtype == "U8" and prod(header.shape) == (count + 1) // 2  # two weights in a byte
