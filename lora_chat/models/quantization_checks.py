"""The quantization that a base's small files declare: which is loaded, and one sentence that refuses every other."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lora_chat.config.stored_quantization import MAX_MODULES, MODULE_NAME_PATTERN, StoredQuantization
from lora_chat.errors import LoraChatError, UnavailableError
from lora_chat.system.bounded_files import SMALL_FILE_BYTES, read_text
from lora_chat.system.sanitize import sanitize_line

_DEQUANTIZED_METHODS = {"fp8": "FP8", "mxfp4": "MXFP4"}
"""Methods whose weights are dequantized when they are read, without the kernels that Transformers would import."""
_PLAIN_SETTINGS: Mapping[str, Mapping[str, tuple[object, ...]]] = {
    "fp8": {
        "quant_method": ("fp8",),
        "activation_scheme": ("dynamic", "static"),
        "fmt": ("e4m3", "float8_e4m3fn", "e5m2", None),
        "scale_fmt": ("float", None),
        "expert_dtype": ("fp8", None),
        "modules_to_convert": (None, []),
    },
    "mxfp4": {"quant_method": ("mxfp4",)},
}
"""Values of settings whose weights are read; another value means another format."""
_MODULE_LIST_FIELDS = ("llm_int8_skip_modules", "modules_to_not_convert", "ignored_layers", "target_modules")
_MODULE_NAME = re.compile(MODULE_NAME_PATTERN)
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_BASE_MODEL = re.compile(r"^base_model:[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?(" + _HUB_ID.pattern + r")[\"']?[ \t]*$", re.M)
_FORMAT_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
}
"""Files beside the weights by which older or other programs declare quantized weights, and their usual format."""


def check_quantization_config(value: object, where: str) -> None:
    """Raise UnavailableError unless lora_chat can load weights with a `quantization_config`."""
    parse_quantization_config(value, where)


def parse_quantization_config(value: object, where: str) -> StoredQuantization:
    """Return the quantization that a config declares. Raises UnavailableError if it cannot be loaded."""
    settings = value if isinstance(value, dict) else {}
    method = settings.get("quant_method", None if "bits" in settings else "bitsandbytes")
    if not isinstance(value, dict):
        method = value
    if method is None and isinstance(settings.get("group_size"), int):
        method = "mlx"
    if isinstance(method, str) and method in _DEQUANTIZED_METHODS and _is_plain(settings, method):
        _check_module_lists(settings, where)
        return StoredQuantization(method="fp8" if method == "fp8" else "mxfp4", mode="none")
    is_4bit, is_8bit = (settings.get(key) is True for key in ("load_in_4bit", "load_in_8bit"))
    if method != "bitsandbytes" or is_4bit == is_8bit:
        raise _refuse(str(method), settings, where)
    _check_module_lists(settings, where)
    if settings.get("bnb_4bit_quant_storage") not in (None, "uint8"):
        raise _refuse("bitsandbytes with a bnb_4bit_quant_storage other than uint8", settings, where)
    if settings.get("llm_int8_has_fp16_weight") is True:
        raise _refuse("bitsandbytes with llm_int8_has_fp16_weight", settings, where)
    fields = {
        "method": "bitsandbytes",
        "mode": "8bit",
        "skipped_modules": settings.get("llm_int8_skip_modules"),
    }
    if is_4bit:
        fields |= {
            "mode": "4bit",
            "quant_type": settings.get("bnb_4bit_quant_type") or "fp4",
            "double_quantization": settings.get("bnb_4bit_use_double_quant") is True,
            "compute_dtype": settings.get("bnb_4bit_compute_dtype") or "float32",
        }
    try:
        return StoredQuantization.model_validate_json(json.dumps(fields))
    except ValueError as error:
        shown = f"bitsandbytes as {fields.get('quant_type')} with products in {fields.get('compute_dtype')}"
        raise _refuse(shown, settings, where) from error


def find_stored_quantization(config: Mapping[str, object], where: str = "config.json") -> StoredQuantization | None:
    """Return the quantization of a base's files, or None. `config` is the content of its config.json.

    Like Transformers, this looks at the config itself, then at the part for text.
    """
    for part in (config, config.get("text_config")):
        value = part.get("quantization_config") if isinstance(part, Mapping) else None
        if value is not None:
            return parse_quantization_config(value, where)
    return None


def check_other_declarations(config: Mapping[str, object], folder: Path) -> None:
    """Raise UnavailableError if a base declares quantized weights elsewhere than in `quantization_config`."""
    where = str(folder / "config.json")
    for part in (config, config.get("text_config")):
        settings = part.get("quantization") if isinstance(part, Mapping) else None
        if isinstance(settings, dict) and "bits" in settings:
            raise _refuse("mlx", settings, where)
    if find_stored_quantization(config, where) is not None:
        return
    for name, method in _FORMAT_FILES.items():
        if (folder / name).is_file():
            raise _refuse(f"{method} (it has a {name})", {}, where)


def _is_plain(settings: Mapping[str, object], method: str) -> bool:
    """Return whether all settings that change the format of weights have known values."""
    return all(key not in settings or settings[key] in values for key, values in _PLAIN_SETTINGS[method].items())


def _check_module_lists(settings: Mapping[str, object], where: str) -> None:
    """Raise UnavailableError unless lists of modules contain plain names."""
    for key in _MODULE_LIST_FIELDS:
        names = settings.get(key) or []
        if (
            not isinstance(names, list)
            or len(names) > MAX_MODULES
            or not all(isinstance(name, str) and _MODULE_NAME.fullmatch(name) for name in names)
        ):
            raise UnavailableError(f"{where}: {key} must be a list of layer names. Fix: replace the file.")


def _refuse(method: str, settings: Mapping[str, object], where: str) -> UnavailableError:
    """Return the error for quantized weights that cannot be loaded, with the unquantized base if it is known."""
    bits = settings.get("bits")
    shown = sanitize_line(method, 60) + (f" ({bits} bits)" if type(bits) is int and 0 < bits < 100 else "")
    name = find_unquantized_name(Path(where).parent)
    other = f"the unquantized base {name}" if name else "the unquantized base, which its hub page names as base model"
    return UnavailableError(
        f"{where}: the weights are already quantized by {shown}, and such weights cannot be loaded; only those of "
        f"bitsandbytes, FP8 and MXFP4 can. Fix: use {other}; lora_chat quantizes it (quantization.mode)."
    )


def find_unquantized_name(folder: Path) -> str | None:
    """Return the hub id that a model card in the folder names as base model, or None."""
    with suppress(OSError, LoraChatError):
        text = read_text(folder / "README.md", SMALL_FILE_BYTES, UnavailableError)
        front_matter = text.split("\n---", 1)[0] if text.startswith("---") else ""
        match = _BASE_MODEL.search(front_matter)
        return match[1] if match else None
    return None
