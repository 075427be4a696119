"""Load a base that Transformers quantizes, or one whose files are quantized already."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.config.plan import PrecisionPlan
from lora_chat.config.stored_quantization import StoredQuantization
from lora_chat.models.quantization.stored_weights import plan_dequantization, read_dequantized_weights
from lora_chat.models.text_layers import list_unquantized_layers
from lora_chat.system.safetensors_header import read_tensor_headers

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel


def make_quantization_options(
    precision: PrecisionPlan, skeleton: "PreTrainedModel | None"
) -> "dict[str, BitsAndBytesConfig]":
    """Return the argument with which Transformers quantizes a base; none if it does not, or if its files say how.

    `skeleton` is the base's model on the meta device, if it is known.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if precision.mode == "none" or precision.stored is not None:
        return {}
    if precision.mode == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=precision.double_quantization,
            bnb_4bit_compute_dtype=getattr(torch, precision.dtype),
        )
    if skeleton is not None and (skipped := list_skipped_layers(skeleton)):
        config.llm_int8_skip_modules = skipped
    return {"quantization_config": config}


def list_skipped_layers(skeleton: "PreTrainedModel") -> list[str]:
    """Return the modules that bitsandbytes must leave in 16 bits; empty if Transformers' own list is enough.

    `skeleton` is the base's model on the meta device.
    """
    from transformers.quantizers.base import get_keys_to_not_convert

    skipped = list_unquantized_layers(skeleton)
    # Transformers' own list is replaced by this one, so it is repeated.
    return [*get_keys_to_not_convert(skeleton), *skipped] if skipped else []


def load_dequantized(
    name: str,
    paths: Iterable[Path],
    stored: StoredQuantization,
    config: "PretrainedConfig",
    model_class: "type[PreTrainedModel]",
    options: Mapping[str, object],
) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """Load a base in FP8 or MXFP4 as a model of plain weights, and return it with the report of Transformers.

    `paths` are its files of weights, `config` is its config, which is changed, and `options` are those of
    `from_pretrained`.
    """
    from transformers import GenerationConfig

    shards = [path for path in paths if path.suffix == ".safetensors"]
    headers = {key: header for path in shards for key, header in read_tensor_headers(path).items()}
    plan = plan_dequantization(name, stored, headers, read_block_size(config))
    remove_quantization_config(config)
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=read_dequantized_weights(shards, plan), **options
    )
    with suppress(OSError):  # there is no such file
        model.generation_config = GenerationConfig.from_pretrained(shards[0].parent, local_files_only=True)
    return model, info


def cast_unquantized_weights(model: "PreTrainedModel", dtype: "torch.dtype") -> None:
    """Cast the weights that are not quantized to the dtype of the plan, as for other bases.

    Transformers leaves all weights of a quantized base in the dtype of its files (`HfQuantizer.get_new_dtype` in
    quantizers/base.py, Transformers 5.23).
    """
    float32_plan = model._get_dtype_plan(dtype)  # weights that an architecture keeps in fp32
    for name, weight in model.named_parameters():
        if weight.is_floating_point():
            wanted = next((other for pattern, other in float32_plan.items() if re.search(pattern, name)), dtype)
            weight.data = weight.data.to(wanted)


def read_block_size(config: "PretrainedConfig") -> tuple[int, ...] | None:
    """Return the size of the blocks of an FP8 base; None if each weight has one scale."""
    settings: object = next((part.quantization_config for part in _quantized_parts(config)), {})
    blocks = settings.get("weight_block_size") if isinstance(settings, dict) else None
    is_size = isinstance(blocks, list | tuple) and all(type(size) is int and size > 0 for size in blocks)
    return tuple(blocks) if is_size and blocks else None


def remove_quantization_config(config: "PretrainedConfig") -> None:
    """Remove the quantization from a config and its part for text."""
    for part in _quantized_parts(config):
        del part.quantization_config


def has_quantization_config(config: "PretrainedConfig") -> bool:
    """Return whether a config or its part for text declares quantized weights."""
    return bool(_quantized_parts(config))


def _quantized_parts(config: "PretrainedConfig") -> "list[Any]":
    """Return the parts of a config that declare quantized weights."""
    try:
        text = config.get_text_config()
    except ValueError:  # a config of several parts without one for text
        text = config
    parts = [config] if text is config else [config, text]
    return [part for part in parts if getattr(part, "quantization_config", None) is not None]
