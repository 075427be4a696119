"""Checks of an untrusted config.json before Transformers reads it: no field chooses code, no number is too large."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.models.quantization_checks import check_quantization_config
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Every other value names code that is imported, or downloaded by the package `kernels` (`integrations/hub_kernels.py`):
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
"""Arguments of loading that are not fields of a config. Only null and false are harmless."""

_MAX_LAYERS, _MAX_WIDTH, _MAX_VOCAB_SIZE, _MAX_POSITIONS = 1000, 1 << 20, 1 << 24, 1 << 27
_MAX_HEADS = _MAX_EXPERTS = 4096
_MAX_LABELS = 1 << 16
_MAX_TOTAL_EXPERTS = 1 << 16
"""Layers times experts; the largest known base has 23,000."""
_MAX_ITEMS = 1 << 16

_FIELD_LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), _MAX_LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim", "intermediate_size", "n_inner"), _MAX_WIDTH),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "num_heads"), _MAX_HEADS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), _MAX_POSITIONS),
    "vocab_size": _MAX_VOCAB_SIZE,
    "num_labels": _MAX_LABELS,
}
"""Limits of fields that must be whole numbers, lists of them (one for each layer), or null."""
_ZERO_ALLOWED = {"intermediate_size", "n_inner", "head_dim", "num_key_value_heads"}
_PATTERN_LIMITS = (
    (re.compile(r"vocab"), _MAX_VOCAB_SIZE),
    (re.compile(r"position|seq_?len|sequence_length|max_length|window"), _MAX_POSITIONS),
    (re.compile(r"layers?$|blocks?$|depths?$"), _MAX_LAYERS),
    (re.compile(r"experts?(_per_tok(en)?)?$|groups?$"), _MAX_EXPERTS),
    (re.compile(r"heads?$"), _MAX_HEADS),
    (re.compile(r"labels?$|classes$"), _MAX_LABELS),
    (re.compile(r"(size|dim|dims|rank|width|inner|state|d_ff|d_kv)$"), _MAX_WIDTH),
)
"""Limits of other fields whose name says which quantity they are; the first match counts."""
_TOKEN_ID_FIELD = re.compile(r"(^|_)(bos|eos|pad|unk|sep|cls|mask|decoder_start)_token_id$")
_LABEL_TABLES = ("id2label", "label2id")


def check_no_remote_code(config: Mapping[str, object], where: str) -> None:
    """Check a config and all objects in it.

    Raises IntegrityError naming a field that chooses code to run, UnavailableError for a method of quantization
    that lora_chat cannot load.
    """
    for part in _iterate_objects(config):
        for key, value in part.items():
            if key in _ALLOWED_IMPLEMENTATIONS:
                _check_implementation(key, value, where)
            elif key in _FORBIDDEN_FIELDS and value not in (None, False):
                raise _forbidden_field_error(where, key, value, "which loads other code")
            elif key == "attribute_map" and value:
                raise _forbidden_field_error(where, key, value, "which renames fields")
            elif key == "quantization_config" and value is not None:
                check_quantization_config(value, where)


def check_generation_config(settings: Mapping[str, object], where: str) -> None:
    """Raise UnavailableError for generation settings that need other packages, or a tokenizer in every call."""
    if settings.get("cache_implementation") == "quantized" or settings.get("stop_strings"):
        key = "stop_strings" if settings.get("stop_strings") else "cache_implementation"
        raise UnavailableError(f"{where}: {key} is not supported. Fix: remove it from the file.")


def check_loaded_config(config: "PretrainedConfig", where: str) -> None:
    """Raise IntegrityError if a config, after Transformers loaded it, chooses code that its file does not name.

    Raises UnavailableError if it makes the model return tuples, whose parts have no names.
    """
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    for part in parts:
        if getattr(part, "return_dict", True) is False:
            raise UnavailableError(f"{where} sets return_dict to false. Fix: remove return_dict from config.json.")
        for key in ("_attn_implementation", "_experts_implementation"):
            _check_implementation(key, getattr(part, key, None), where)


def check_config_limits(config: Mapping[str, object], where: str) -> None:
    """Raise UnavailableError naming the first field that is out of bounds or of a wrong type."""
    for part in _iterate_objects(config, skip=_LABEL_TABLES):
        for key, value in part.items():
            _check_field(key, value, where)
        layers = _max_int(part.get("num_hidden_layers", part.get("n_layer")))
        experts = max((_max_int(value) for key, value in part.items() if key.endswith("experts")), default=0)
        if layers * experts > _MAX_TOTAL_EXPERTS:
            raise _limit_error(where, "experts", f"{layers} layers of {experts} experts", _MAX_TOTAL_EXPERTS)


def _iterate_objects(config: Mapping[str, object], skip: Collection[str] = ()) -> Iterator[Mapping[str, object]]:
    """Yield the config and all objects in it, such as `text_config`; the fields in `skip` are not entered."""
    pending: list[object] = [config]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield part
            pending += [value for key, value in part.items() if key not in skip]
        elif isinstance(part, list):
            pending += part


def _check_implementation(key: str, value: object, where: str) -> None:
    """Raise IntegrityError for an implementation of attention or experts that is not built into Transformers."""
    for name in value.values() if isinstance(value, dict) else [value]:
        if name is not None and not (isinstance(name, str) and name in _ALLOWED_IMPLEMENTATIONS[key]):
            allowed = ", ".join(sorted(_ALLOWED_IMPLEMENTATIONS[key]))
            raise _forbidden_field_error(where, key, name, f"and only {allowed} run no other code")


def _check_field(key: str, value: object, where: str) -> None:
    """Raise UnavailableError if the value of one field is out of bounds or of a wrong type."""
    if key in _LABEL_TABLES:
        if not isinstance(value, dict | None):
            raise UnavailableError(f"{where}: {key} must be an object. Fix: replace the file.")
        if value is not None and len(value) > _MAX_LABELS:
            raise _limit_error(where, key, f"{len(value):,} labels", _MAX_LABELS)
    elif isinstance(value, list) and len(value) > _MAX_ITEMS:
        raise _limit_error(where, key, f"{len(value):,} items", _MAX_ITEMS)
    elif key in _FIELD_LIMITS:
        _check_numbers(key, value, where, 0 if key in _ZERO_ALLOWED else 1, _FIELD_LIMITS[key])
    elif _TOKEN_ID_FIELD.search(key):
        _check_numbers(key, value, where, -1, _MAX_VOCAB_SIZE)
    else:
        limit = next((limit for pattern, limit in _PATTERN_LIMITS if pattern.search(key)), None)
        for number in value if isinstance(value, list) else [value]:
            if limit and isinstance(number, int | float) and abs(number) > limit:
                raise _limit_error(where, key, number, limit)


def _check_numbers(key: str, value: object, where: str, minimum: int, maximum: int) -> None:
    """Raise UnavailableError unless a value is null, a whole number within bounds, or a list of these."""
    for number in value if isinstance(value, list) else [value]:
        if number is None:
            continue
        if type(number) is not int:
            raise UnavailableError(
                f"{where}: {key} = {str(number)[:60]!a} is not a whole number. Fix: replace the file."
            )
        if not minimum <= number <= maximum:
            raise _limit_error(where, key, number, maximum, minimum)


def _max_int(value: object) -> int:
    """Return the largest whole number in a value or list, or 0."""
    return max((item for item in (value if isinstance(value, list) else [value]) if type(item) is int), default=0)


def _limit_error(where: str, key: str, value: object, maximum: int, minimum: int | None = None) -> UnavailableError:
    """Return the error for a value that is out of bounds."""
    shown = f"{value:,}" if isinstance(value, int) and abs(value) < 10**30 else str(value)[:60]
    bounds = f"at most {maximum:,}" if minimum is None else f"from {minimum} to {maximum:,}"
    return UnavailableError(f"{where}: {key} = {shown} is out of bounds ({bounds}). Fix: replace the file.")


def _forbidden_field_error(where: str, key: str, value: object, reason: str) -> IntegrityError:
    """Return the error for a field that chooses code to run."""
    return IntegrityError(
        f"{where} sets {key} = {sanitize_line(str(value), 100)}, {reason}; nothing was loaded.\n"
        f"Fix: use the base as its authors publish it, or remove {key} from config.json."
    )
