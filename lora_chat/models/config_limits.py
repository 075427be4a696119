"""Bounds on the numbers of a base's config, checked before transformers builds anything of that size."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_chat.errors import UnavailableError

_MAX_LAYERS, _MAX_WIDTH, _MAX_VOCAB_SIZE, _MAX_POSITIONS = 1000, 1 << 20, 1 << 24, 1 << 27
_MAX_HEADS = _EXPERTS = 4096
_MAX_LABELS = 1 << 16
_MAX_TOTAL_EXPERTS = 1 << 16
"""Layers times experts; the largest base has 23,000."""
_MAX_ITEMS = 1 << 16

_FIELD_LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), _MAX_LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim", "intermediate_size", "n_inner"), _MAX_WIDTH),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "num_heads"), _MAX_HEADS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), _MAX_POSITIONS),
    "vocab_size": _MAX_VOCAB_SIZE,
    "num_labels": _MAX_LABELS,
}
"""Whole numbers, or lists of them (one for each layer), or null."""
_ZERO_ALLOWED = {"intermediate_size", "n_inner", "head_dim", "num_key_value_heads"}
_PATTERN_LIMITS = (
    (re.compile(r"vocab"), _MAX_VOCAB_SIZE),
    (re.compile(r"position|seq_?len|sequence_length|max_length|window"), _MAX_POSITIONS),
    (re.compile(r"layers?$|blocks?$|depths?$"), _MAX_LAYERS),
    (re.compile(r"experts?(_per_tok(en)?)?$|groups?$"), _EXPERTS),
    (re.compile(r"heads?$"), _MAX_HEADS),
    (re.compile(r"labels?$|classes$"), _MAX_LABELS),
    (re.compile(r"(size|dim|dims|rank|width|inner|state|d_ff|d_kv)$"), _MAX_WIDTH),
)
"""Of every other field whose name says what it counts; the first that matches."""
_TOKEN_ID_FIELD = re.compile(r"(^|_)(bos|eos|pad|unk|sep|cls|mask|decoder_start)_token_id$")
_LABEL_TABLES = ("id2label", "label2id")


def check_config_limits(config: Mapping[str, Any], where: str) -> None:
    """Raise UnavailableError naming the first field that is out of bounds or of a wrong type."""
    for part in _iterate_objects(config):
        for key, value in part.items():
            _check_field(key, value, where)
        layers = _max_int(part.get("num_hidden_layers", part.get("n_layer")))
        experts = max((_max_int(value) for key, value in part.items() if key.endswith("experts")), default=0)
        if layers * experts > _MAX_TOTAL_EXPERTS:
            raise _limit_error(where, "experts", f"{layers} layers of {experts} experts", _MAX_TOTAL_EXPERTS)


def _iterate_objects(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the config and all objects in it, such as `text_config`."""
    waiting: list[Any] = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            yield part
            waiting += [value for key, value in part.items() if key not in _LABEL_TABLES]


def _check_field(key: str, value: Any, where: str) -> None:
    if key in _LABEL_TABLES:
        if not isinstance(value, dict | None):
            raise UnavailableError(f"{where}: {key} is no table of labels. Replace the file.")
        if value is not None and len(value) > _MAX_LABELS:
            raise _limit_error(where, key, f"{len(value):,} labels", _MAX_LABELS)
    elif isinstance(value, list) and len(value) > _MAX_ITEMS:
        raise _limit_error(where, key, f"{len(value):,} items", _MAX_ITEMS)
    elif key in _FIELD_LIMITS:
        _check_numbers(key, value, where, 0 if key in _ZERO_ALLOWED else 1, _FIELD_LIMITS[key])
    elif _TOKEN_ID_FIELD.search(key):
        _check_numbers(key, value, where, -1, _MAX_VOCAB_SIZE)
    else:
        most = next((most for pattern, most in _PATTERN_LIMITS if pattern.search(key)), None)
        for number in value if isinstance(value, list) else [value]:
            if most and isinstance(number, int | float) and abs(number) > most:
                raise _limit_error(where, key, number, most)


def _check_numbers(key: str, value: Any, where: str, least: int, most: int) -> None:
    for number in value if isinstance(value, list) else [value]:
        if number is None:
            continue
        if type(number) is not int:
            raise UnavailableError(f"{where}: {key} = {str(number)[:60]!a} is no whole number. Replace the file.")
        if not least <= number <= most:
            raise _limit_error(where, key, number, most, least)


def _max_int(value: Any) -> int:
    return max((one for one in (value if isinstance(value, list) else [value]) if type(one) is int), default=0)


def _limit_error(where: str, key: str, found: Any, most: int, least: int | None = None) -> UnavailableError:
    shown = f"{found:,}" if isinstance(found, int) and abs(found) < 10**30 else str(found)[:60]
    bounds = f"at most {most:,}" if least is None else f"from {least} to {most:,}"
    return UnavailableError(f"{where}: {key} = {shown}, which no base has ({bounds}). Replace the file.")
