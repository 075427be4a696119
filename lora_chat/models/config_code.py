"""Fields of a base's config by which Transformers fetches or runs other code, refused by name before it reads them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.system.sanitize import sanitize_line

# Every other word names code that is imported, or downloaded by the package `kernels` (`integrations/hub_kernels.py`):
# `owner/name:function`, and also `flash_attention_2`, `deepgemm` and `sonicmoe`.
_ATTENTION_IMPLEMENTATIONS = {"eager", "sdpa", "flex_attention"}
_EXPERTS_IMPLEMENTATIONS = {"eager", "batched_mm", "grouped_mm"}
_ALLOWED_IMPLEMENTATIONS = {
    "attn_implementation": _ATTENTION_IMPLEMENTATIONS,
    "_attn_implementation": _ATTENTION_IMPLEMENTATIONS,
    "_attn_implementation_internal": _ATTENTION_IMPLEMENTATIONS,
    "experts_implementation": _EXPERTS_IMPLEMENTATIONS,
    "_experts_implementation": _EXPERTS_IMPLEMENTATIONS,
    "_experts_implementation_internal": _EXPERTS_IMPLEMENTATIONS,
}
_FORBIDDEN_FIELDS = ("use_kernels", "kernel_config", "allow_all_kernels", "distributed_config", "gguf_file")
"""Arguments of loading that are no fields of a config; only null and false are harmless."""

_QUANTIZATION_METHOD = "bitsandbytes"
"""The one method of quantised weights that is loaded; every other imports a package or kernels of its own."""
_MODULE_LIST_FIELDS = ("llm_int8_skip_modules", "modules_to_not_convert", "target_modules")
# Transformers matches them as regular expressions against every name.
_MODULE_NAME = re.compile(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100}){0,20}\.?")
_MAX_MODULES = 5_000


def check_no_remote_code(config: Mapping[str, Any], where: str) -> None:
    """Check a config with everything in it.

    Raises IntegrityError naming a field that chooses code to run, UnavailableError for a method of quantisation
    that lora_chat cannot load.
    """
    for part in _iterate_objects(config):
        for key, value in part.items():
            if key in _ALLOWED_IMPLEMENTATIONS:
                _check_implementation(key, value, where)
            elif key in _FORBIDDEN_FIELDS and value not in (None, False):
                raise _forbidden_field_error(where, key, value, "that loads other code")
            elif key == "attribute_map" and value:
                raise _forbidden_field_error(where, key, value, "that makes fields pass under other names")
            elif key == "quantization_config" and value is not None:
                _check_quantization_config(value, where)


def check_generation_config(settings: Mapping[str, Any], where: str) -> None:
    """Raise UnavailableError for generation settings that need other packages, or a tokenizer that no call has."""
    if settings.get("cache_implementation") == "quantized" or settings.get("stop_strings"):
        key = "stop_strings" if settings.get("stop_strings") else "cache_implementation"
        raise UnavailableError(f"{where}: {key} is not supported. Remove it from the file.")


def check_loaded_config(config: Any, where: str) -> None:
    """Raise IntegrityError if a config, as Transformers loaded it, chooses code that its file does not name."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    for part in parts:
        for key in ("_attn_implementation", "_experts_implementation"):
            _check_implementation(key, getattr(part, key, None), where)


def _iterate_objects(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    waiting: list[Any] = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _check_implementation(key: str, value: Any, where: str) -> None:
    for word in value.values() if isinstance(value, dict) else [value]:
        if word is not None and not (isinstance(word, str) and word in _ALLOWED_IMPLEMENTATIONS[key]):
            raise _forbidden_field_error(
                where, key, word, f"and only {', '.join(sorted(_ALLOWED_IMPLEMENTATIONS[key]))} run no other code"
            )


def _check_quantization_config(value: Any, where: str) -> None:
    method = value.get("quant_method", _QUANTIZATION_METHOD) if isinstance(value, dict) else value
    loads = isinstance(value, dict) and (value.get("load_in_4bit") is True or value.get("load_in_8bit") is True)
    if method != _QUANTIZATION_METHOD or not loads:
        raise UnavailableError(
            f"{where}: weights quantised by {sanitize_line(str(method), 60)} cannot be loaded, only those of "
            f"{_QUANTIZATION_METHOD} with "
            "load_in_4bit or load_in_8bit. Use the base in 16 bits; lora_chat quantises it itself."
        )
    for key in _MODULE_LIST_FIELDS:
        names = value.get(key) or []
        if (
            not isinstance(names, list)
            or len(names) > _MAX_MODULES
            or not all(isinstance(name, str) and _MODULE_NAME.fullmatch(name) for name in names)
        ):
            raise UnavailableError(f"{where}: {key} must be a list of names of layers. Replace the file.")


def _forbidden_field_error(where: str, key: str, value: Any, why: str) -> IntegrityError:
    return IntegrityError(
        f"{where} sets {key} = {sanitize_line(str(value), 100)}, {why}; nothing was loaded.\n"
        f"Fix: use the base as its authors publish it, or remove {key} from config.json."
    )
