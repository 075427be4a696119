"""Comparison of the weights in a base's files with the weights of its model, because Transformers accepts differences.

Transformers gives missing weights random values at each load and ignores foreign ones, with a warning at most. Its
`output_loading_info` reports both after every conversion of names
(https://huggingface.co/docs/transformers/main_classes/model#transformers.PreTrainedModel.from_pretrained).
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.config.stored_quantization import StoredQuantization
from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.models.integrity import check_safetensors_file
from lora_chat.models.quantization.layer_formats import check_layer_formats, check_no_fp8
from lora_chat.models.quantization.quantized_base import (
    has_quantization_config,
    read_block_size,
    remove_quantization_config,
)
from lora_chat.models.quantization.stored_weights import dequantized_headers, plan_dequantization
from lora_chat.models.weight_differences import WeightDifferences, is_known_extra, refuse_differences
from lora_chat.system.safetensors_header import TensorHeader, read_tensor_headers
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_MAX_WEIGHTS_PER_BYTE = 16
"""Limit of weights per byte of the files; every format needs at least half a bit for each weight."""
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""PyTorch's names of the floating-point dtypes in safetensors files."""


def check_weight_count(name: str, folder: Path, model: "PreTrainedModel") -> None:
    """Raise UnavailableError if a config describes far more weights than the files can contain.

    The check is needed because Transformers allocates and initializes all missing weights.
    """
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    file_bytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if num_weights > _MAX_WEIGHTS_PER_BYTE * file_bytes:
        raise UnavailableError(
            f"The config of {name} describes {num_weights:,} weights, and its files have {file_bytes:,} bytes: "
            "they do not belong together. Fix: copy or download the base again."
        )


def check_weight_headers(
    name: str,
    paths: Iterable[Path],
    model: "PreTrainedModel",
    config: "PretrainedConfig",
    stored: StoredQuantization | None = None,
) -> None:
    """Raise IntegrityError if the headers of a base's files do not describe its model's weights.

    `model` is the base's model on the meta device. A base whose conversion fails without values is left to
    `check_loaded_weights`. For a base that bitsandbytes quantized, only names and the dtypes of quantized layers are
    compared; weights in FP8 and MXFP4 are compared as they are after dequantization. `config` is changed.
    """
    headers: dict[str, TensorHeader] = {}
    files: dict[str, Path] = {}
    for path in paths:
        check_safetensors_file(path)
        read = read_tensor_headers(path)
        if repeated := sorted(read.keys() & headers.keys()):
            raise IntegrityError(
                f"Two files of {name} contain {sanitize_line(repeated[0], 120)} ({files[repeated[0]].name} and "
                f"{path.name}), so its weights are ambiguous. Fix: copy or download the base again."
            )
        headers |= read
        files |= dict.fromkeys(read, path)
    if stored is not None and stored.mode == "none":
        headers = dequantized_headers(headers, plan_dequantization(name, stored, headers, read_block_size(config)))
        remove_quantization_config(config)
    elif stored is None:
        check_no_fp8(name, headers)
    is_quantized = has_quantization_config(config)
    lacking = _list_lacking_states(headers) if is_quantized else []
    if is_quantized:
        headers = {key: header for key, header in headers.items() if not is_known_extra(key, config)}
    try:
        info = _load_headers(model, headers)
    except Exception:  # a conversion that needs values
        info = {"missing_keys": (), "unexpected_keys": (), "mismatched_keys": ()}
        headers = {}
    differences = WeightDifferences.from_loading_info(info, config)
    if is_quantized:
        differences = WeightDifferences([*differences.missing, *lacking], differences.foreign)
    else:
        differences = replace(differences, integers=_list_integer_weights(model, headers, info, config))
    refuse_differences(name, replace(differences, untied=_list_untied(model, files)), model)
    if stored is not None and stored.mode != "none":
        check_layer_formats(name, stored, headers, model)


def _list_lacking_states(headers: Mapping[str, TensorHeader]) -> list[str]:
    """Return tensors without which bitsandbytes cannot dequantize weights, or dequantizes them to other values."""
    needed = []
    for key in headers:
        weight, has_state, _format = key.partition(".quant_state.bitsandbytes__")
        if has_state:
            needed += [weight, f"{weight}.absmax", f"{weight}.quant_map"]
            absmax = headers.get(f"{weight}.absmax")
            if absmax and absmax.dtype == "U8":  # double quantization
                needed += [f"{weight}.nested_absmax", f"{weight}.nested_quant_map"]
        elif key.endswith(".weight") and headers[key].dtype == "I8":
            needed.append(key.removesuffix("weight") + "SCB")
        elif key.endswith(".weight") and headers[key].dtype == "U8" and not any(s in headers for s in _states(key)):
            needed.append(_states(key)[0])
    return [key for key in needed if key not in headers]


def _states(weight: str) -> list[str]:
    """Return the names that the state of a 4-bit weight can have, one for each format."""
    return [f"{weight}.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")]


def _load_headers(model: "PreTrainedModel", headers: Mapping[str, TensorHeader]) -> dict[str, Any]:
    """Return what Transformers reports if it loads tensors without values on the meta device."""
    import torch

    tensors = {
        key: torch.empty(header.shape, dtype=getattr(torch, _DTYPES.get(header.dtype, "float32")), device="meta")
        for key, header in headers.items()
    }
    config = deepcopy(model.config)
    remove_quantization_config(config)
    _model, info = type(model).from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=torch.float32,
        device_map={"": "meta"},
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return dict(info)


def _list_integer_weights(
    model: "PreTrainedModel", headers: Mapping[str, TensorHeader], info: Mapping[str, Any], config: "PretrainedConfig"
) -> list[str]:
    """Return floating-point weights of the model that integers in the files would be loaded into.

    `info` is the report for all headers. The names may be converted, so integers are found by leaving them out.
    """
    integers = [
        key for key, header in headers.items() if header.dtype not in _DTYPES and not is_known_extra(key, config)
    ]
    if not integers:
        return []
    try:
        rest = _load_headers(model, {key: header for key, header in headers.items() if key not in integers})
    except Exception:  # a conversion, such as the concatenation of experts, that needs the integers
        return integers
    state = model.state_dict()
    lacking = _list_lacking(rest) - _list_lacking(info)
    return [key for key in lacking if key in state and state[key].is_floating_point()]


def _list_lacking(info: Mapping[str, Any]) -> set[str]:
    """Return the weights that a report of Transformers calls missing or of another shape."""
    return {*info["missing_keys"], *(key for key, *_shapes in info["mismatched_keys"])}


def _list_untied(model: "PreTrainedModel", files: Mapping[str, Path]) -> list[str]:
    """Return the weights that the config ties to others although both are in the files and differ."""
    import torch
    from safetensors import safe_open

    untied = []
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        if target not in files or source not in files:
            continue
        with safe_open(files[target], "pt") as first, safe_open(files[source], "pt") as second:
            if not torch.equal(first.get_tensor(target), second.get_tensor(source)):
                untied.append(target)
    return untied


def check_loaded_weights(
    name: str,
    info: Mapping[str, Any],
    loaded: "PreTrainedModel",
    meta_model: "PreTrainedModel",
    config: "PretrainedConfig",
) -> None:
    """Raise IntegrityError if Transformers has loaded other weights than the model has.

    `info` is its `output_loading_info`, and `meta_model` is the base's model on the meta device.
    """
    differences = WeightDifferences.from_loading_info(info, config)
    # Transformers unties weights that differ in the files.
    tied, still_tied = (getattr(model, "all_tied_weights_keys", {}).keys() for model in (meta_model, loaded))
    refuse_differences(name, replace(differences, untied=tied - still_tied), meta_model)
