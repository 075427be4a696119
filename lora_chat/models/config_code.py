"""Fields of a base's config by which Transformers fetches or runs other code, refused by name before it reads them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_chat.errors import BaseUnavailableError, IntegrityError
from lora_chat.system.sanitize import visible

# Every other word names code that is imported, or downloaded by the package `kernels` (`integrations/hub_kernels.py`):
# `owner/name:function`, and also `flash_attention_2`, `deepgemm` and `sonicmoe`.
_ATTENTION = {"eager", "sdpa", "flex_attention"}
_EXPERTS = {"eager", "batched_mm", "grouped_mm"}
_WORDS = {
    "attn_implementation": _ATTENTION,
    "_attn_implementation": _ATTENTION,
    "_attn_implementation_internal": _ATTENTION,
    "experts_implementation": _EXPERTS,
    "_experts_implementation": _EXPERTS,
    "_experts_implementation_internal": _EXPERTS,
}
_SWITCHES = ("use_kernels", "kernel_config", "allow_all_kernels", "distributed_config", "gguf_file")
"""Arguments of loading that are no fields of a config; only null and false are harmless."""

_METHOD = "bitsandbytes"
"""The one method of quantised weights that is loaded; every other imports a package or kernels of its own."""
_MODULE_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert", "target_modules")
# Transformers matches them as regular expressions against every name.
_MODULE = re.compile(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100}){0,20}\.?")
_MOST_MODULES = 5_000


def check_no_code(config: Mapping[str, Any], where: str) -> None:
    """Check a config with everything in it.

    Raises IntegrityError naming a field that chooses code to run, BaseUnavailableError for a method of quantisation
    that lora_chat cannot load.
    """
    for part in _parts(config):
        for key, value in part.items():
            if key in _WORDS:
                _check_words(key, value, where)
            elif key in _SWITCHES and value not in (None, False):
                raise _refusal(where, key, value, "that loads other code")
            elif key == "attribute_map" and value:
                raise _refusal(where, key, value, "that makes fields pass under other names")
            elif key == "quantization_config" and value is not None:
                _check_quantisation(value, where)


def check_generation(settings: Mapping[str, Any], where: str) -> None:
    """Raise BaseUnavailableError for generation settings that need other packages, or a tokenizer that no call has."""
    if settings.get("cache_implementation") == "quantized" or settings.get("stop_strings"):
        key = "stop_strings" if settings.get("stop_strings") else "cache_implementation"
        raise BaseUnavailableError(f"{where}: {key} is not supported. Remove it from the file.")


def check_loaded(config: Any, where: str) -> None:
    """Raise IntegrityError if a config, as Transformers loaded it, chooses code that its file does not name."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    for part in parts:
        for key in ("_attn_implementation", "_experts_implementation"):
            _check_words(key, getattr(part, key, None), where)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    waiting: list[Any] = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _check_words(key: str, value: Any, where: str) -> None:
    for word in value.values() if isinstance(value, dict) else [value]:
        if word is not None and not (isinstance(word, str) and word in _WORDS[key]):
            raise _refusal(where, key, word, f"and only {', '.join(sorted(_WORDS[key]))} run no other code")


def _check_quantisation(value: Any, where: str) -> None:
    method = value.get("quant_method", _METHOD) if isinstance(value, dict) else value
    loads = isinstance(value, dict) and (value.get("load_in_4bit") is True or value.get("load_in_8bit") is True)
    if method != _METHOD or not loads:
        raise BaseUnavailableError(
            f"{where}: weights quantised by {visible(str(method), 60)} cannot be loaded, only those of {_METHOD} with "
            "load_in_4bit or load_in_8bit. Use the base in 16 bits; lora_chat quantises it itself."
        )
    for key in _MODULE_LISTS:
        names = value.get(key) or []
        if (
            not isinstance(names, list)
            or len(names) > _MOST_MODULES
            or not all(isinstance(name, str) and _MODULE.fullmatch(name) for name in names)
        ):
            raise BaseUnavailableError(f"{where}: {key} must be a list of names of layers. Replace the file.")


def _refusal(where: str, key: str, value: Any, why: str) -> IntegrityError:
    return IntegrityError(
        f"{where} sets {key} = {visible(str(value), 100)}, {why}; nothing was loaded.\n"
        f"Fix: use the base as its authors publish it, or remove {key} from config.json."
    )
