"""Bounds on the numbers of a base's config, checked before transformers builds anything of that size."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_chat.errors import BaseUnavailableError

_LAYERS, _WIDTH, _VOCABULARY, _POSITIONS = 1000, 1 << 20, 1 << 24, 1 << 27
_HEADS = _EXPERTS = 4096
_LABELS = 1 << 16
_EXPERTS_IN_ALL = 1 << 16
"""Layers times experts; the largest base has 23,000."""
_MOST_ITEMS = 1 << 16

_REQUIRED = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), _LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim", "intermediate_size", "n_inner"), _WIDTH),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "num_heads"), _HEADS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), _POSITIONS),
    "vocab_size": _VOCABULARY,
    "num_labels": _LABELS,
}
"""Whole numbers, or lists of them (one for each layer), or null."""
_MAY_BE_ZERO = {"intermediate_size", "n_inner", "head_dim", "num_key_value_heads"}
_KINDS = (
    (re.compile(r"vocab"), _VOCABULARY),
    (re.compile(r"position|seq_?len|sequence_length|max_length|window"), _POSITIONS),
    (re.compile(r"layers?$|blocks?$|depths?$"), _LAYERS),
    (re.compile(r"experts?(_per_tok(en)?)?$|groups?$"), _EXPERTS),
    (re.compile(r"heads?$"), _HEADS),
    (re.compile(r"labels?$|classes$"), _LABELS),
    (re.compile(r"(size|dim|dims|rank|width|inner|state|d_ff|d_kv)$"), _WIDTH),
)
"""Of every other field whose name says what it counts; the first that matches."""
_IDS = re.compile(r"(^|_)(bos|eos|pad|unk|sep|cls|mask|decoder_start)_token_id$")
_TABLES = ("id2label", "label2id")


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise BaseUnavailableError naming the first field that is out of bounds or of a wrong type."""
    for part in _parts(config):
        for key, value in part.items():
            _check_field(key, value, where)
        layers = _largest(part.get("num_hidden_layers", part.get("n_layer")))
        experts = max((_largest(value) for key, value in part.items() if key.endswith("experts")), default=0)
        if layers * experts > _EXPERTS_IN_ALL:
            raise _refusal(where, "experts", f"{layers} layers of {experts} experts", _EXPERTS_IN_ALL)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the config and all objects in it, such as `text_config`."""
    waiting: list[Any] = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            yield part
            waiting += [value for key, value in part.items() if key not in _TABLES]


def _check_field(key: str, value: Any, where: str) -> None:
    if key in _TABLES:
        if not isinstance(value, dict | None):
            raise BaseUnavailableError(f"{where}: {key} is no table of labels. Replace the file.")
        if value is not None and len(value) > _LABELS:
            raise _refusal(where, key, f"{len(value):,} labels", _LABELS)
    elif isinstance(value, list) and len(value) > _MOST_ITEMS:
        raise _refusal(where, key, f"{len(value):,} items", _MOST_ITEMS)
    elif key in _REQUIRED:
        _check_numbers(key, value, where, 0 if key in _MAY_BE_ZERO else 1, _REQUIRED[key])
    elif _IDS.search(key):
        _check_numbers(key, value, where, -1, _VOCABULARY)
    else:
        most = next((most for pattern, most in _KINDS if pattern.search(key)), None)
        for number in value if isinstance(value, list) else [value]:
            if most and isinstance(number, int | float) and abs(number) > most:
                raise _refusal(where, key, number, most)


def _check_numbers(key: str, value: Any, where: str, least: int, most: int) -> None:
    for number in value if isinstance(value, list) else [value]:
        if number is None:
            continue
        if type(number) is not int:
            raise BaseUnavailableError(f"{where}: {key} = {str(number)[:60]!a} is no whole number. Replace the file.")
        if not least <= number <= most:
            raise _refusal(where, key, number, most, least)


def _largest(value: Any) -> int:
    return max((one for one in (value if isinstance(value, list) else [value]) if type(one) is int), default=0)


def _refusal(where: str, key: str, found: Any, most: int, least: int | None = None) -> BaseUnavailableError:
    shown = f"{found:,}" if isinstance(found, int) and abs(found) < 10**30 else str(found)[:60]
    bounds = f"at most {most:,}" if least is None else f"from {least} to {most:,}"
    return BaseUnavailableError(f"{where}: {key} = {shown}, which no base has ({bounds}). Replace the file.")
