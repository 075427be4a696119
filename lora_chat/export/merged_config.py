"""Complete a merged model's config.json, so that Transformers 4 and other programs read the same model from it.

Transformers 5 moves fields such as `rope_theta` into `rope_parameters` and does not write them. A reader that does not
know the new field then uses its default without a message.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from lora_chat.models.base_settings import canonical_json, read_lenient_json_object

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Fields = Mapping[str, JsonValue]

CONFIG_NAME = "config.json"
_ROPE_FIELD = "rope_parameters"
_NOT_COPIED = {
    "_name_or_path": "names the folder of the base",
    "auto_map": "names code",
    "quantization_config": "the merged weights are not quantized",
    "compression_config": "the merged weights are not quantized",
    "dtype": "the merged weights have their own dtype",
    "torch_dtype": "the older name of dtype",
    "transformers_weights": "names other files of weights",
    "configuration_files": "names other configs",
}
"""Fields of the base's config that a merged config does not take from it, each with the reason."""


@dataclass(frozen=True)
class RopeNames:
    """The fields of Transformers 4 that hold the settings of rotary embeddings."""

    theta: str = "rope_theta"
    fraction: str = "partial_rotary_factor"
    sliding_theta: str | None = None
    """Field for the layers with a sliding window, if their settings differ."""
    scaling_keys: tuple[str, ...] | None = None
    """The only keys that the family's config accepts in `rope_scaling`; None for all."""
    type_key: str = "rope_type"


_ROPE_NAMES = {
    "gpt_neox": RopeNames(theta="rotary_emb_base", fraction="rotary_pct"),
    "gpt_neox_japanese": RopeNames(theta="rotary_emb_base", fraction="rotary_pct"),
    "gemma3_text": RopeNames(sliding_theta="rope_local_base_freq"),
    "gemma3n_text": RopeNames(sliding_theta="rope_local_base_freq"),
    "modernbert-decoder": RopeNames(theta="global_rope_theta", sliding_theta="local_rope_theta"),
    "phi3": RopeNames(scaling_keys=("type", "short_factor", "long_factor"), type_key="type"),
}
"""Names that differ from the usual ones, by model type."""
_ORIGINAL_POSITIONS = "original_max_position_embeddings"
_LEGACY_NAMES = {
    "rope_scaling",
    "type",
    _ORIGINAL_POSITIONS,
    *(name for names in (RopeNames(), *_ROPE_NAMES.values()) for name in (names.theta, names.fraction)),
    *(names.sliding_theta for names in _ROPE_NAMES.values()),
}
_EARLIER_NAMES = {
    name: {"num_local_experts": "num_experts"} for name in ("qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text")
}
"""Names of other fields in Transformers 4, by model type."""
_EARLIER_LAYER_TYPES = {
    "granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"},
    "zamba": {"linear_attention": "mamba"},
    "zamba2": {"linear_attention": "mamba"},
}
"""Names of layer types in Transformers 4, by model type."""
_FULL_LAYERS, _SLIDING_LAYERS = "full_attention", "sliding_attention"


def complete_config(folder: Path, base_folder: Path, config: "PretrainedConfig") -> None:
    """Add the fields that earlier readers need to the config.json of a merged model.

    Fields of the base's own file are kept. Every change is loaded and compared with the written config, and is left out
    if it loads as something else, so that Transformers 5 reads what was merged.
    """
    path = folder / CONFIG_NAME
    written = json.loads(path.read_text(encoding="utf-8"))
    base = _matching_part(read_lenient_json_object(base_folder / CONFIG_NAME) or {}, written)
    config_class = type(config)
    wanted = _load(config_class, written)

    def loads_the_same(fields: Fields) -> bool:
        return _is_same(_load(config_class, fields), wanted)

    # The version decides about a repair of Mistral's tokenizer, whose files are those of the base.
    version = {"transformers_version": base["transformers_version"]} if "transformers_version" in base else {}
    skipped = {*_NOT_COPIED, *_generation_fields()}
    own = _merge_fields(written, base, skipped)
    variants = [_add_earlier_fields(own, base), _add_earlier_fields(written, {}), written]
    completed = next(variant for variant in variants if variant is written or loads_the_same(variant))
    for changed in _list_earlier_values(completed, base, skipped):
        if loads_the_same({**completed, **changed}):
            completed = {**completed, **changed}
    completed = _add_dtype_names({**completed, **version})
    path.write_text(json.dumps(completed, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _list_earlier_values(fields: Fields, base: Fields, skipped: set[str]) -> Iterator[dict[str, JsonValue]]:
    """Yield single fields with the value in the base's file, or with the value that earlier versions know."""
    names = _EARLIER_LAYER_TYPES.get(str(fields.get("model_type")), {})
    for key in ("layer_types", "layers_block_type"):
        layers = fields.get(key)
        if names and isinstance(layers, list):
            yield {key: [names.get(str(layer), layer) for layer in layers]}
    for name, value in base.items():
        if name in fields and name not in skipped and not isinstance(value, dict):
            yield {name: value}


def _generation_fields() -> list[str]:
    """Return the names of generation settings, which Transformers 5 refuses in a model's config."""
    from transformers import GenerationConfig

    return [name for name in GenerationConfig().to_dict() if not name.endswith("_token_id")]


def _matching_part(base: Fields, written: Fields) -> Fields:
    """Return the part of the base's config that the merged model has: the whole, or its text model."""
    if base.get("model_type") == written.get("model_type"):
        return base
    text = base.get("text_config")
    return text if isinstance(text, dict) and text.get("model_type") == written.get("model_type") else {}


def _merge_fields(written: Fields, base: Fields, skipped: set[str]) -> dict[str, JsonValue]:
    """Return the written fields with those that only the base has, also in the configs inside it."""
    merged = dict(written)
    for name, value in base.items():
        current = written.get(name)
        if name not in written:
            if name not in _NOT_COPIED and name not in skipped and name != _ROPE_FIELD:
                merged[name] = _without_code(value)
        elif name.endswith("_config") and isinstance(value, dict) and isinstance(current, dict):
            merged[name] = _merge_fields(current, value, skipped)
    return merged


def _without_code(value: JsonValue) -> JsonValue:
    """Return a value without the fields in it that are not copied."""
    if not isinstance(value, dict):
        return value
    return {name: _without_code(inner) for name, inner in value.items() if name not in _NOT_COPIED}


def _add_earlier_fields(fields: Fields, base: Fields) -> dict[str, JsonValue]:
    """Return a config with earlier names, above all of its rope settings, also in the configs inside it.

    Names that the base's file has are its own, unless it has the new field too, which counts more.
    """
    added = dict(fields)
    rope = fields.get(_ROPE_FIELD)
    if isinstance(rope, dict):
        derived = _derive_rope_fields(rope, _ROPE_NAMES.get(str(fields.get("model_type")), RopeNames()))
        is_own = _ROPE_FIELD not in base
        added |= {name: value for name, value in derived.items() if not (is_own and name in base)}
    for name, earlier in _EARLIER_NAMES.get(str(fields.get("model_type")), {}).items():
        if name in fields:
            added.setdefault(earlier, fields[name])
    for name, value in fields.items():
        if name.endswith("_config") and isinstance(value, dict):
            inner = base.get(name)
            added[name] = _add_earlier_fields(value, inner if isinstance(inner, dict) else {})
    return added


def _derive_rope_fields(rope: Fields, names: RopeNames) -> dict[str, JsonValue]:
    """Return the rope settings under the names of Transformers 4; nothing if it has no names for them."""
    full, sliding = rope.get(_FULL_LAYERS), rope.get(_SLIDING_LAYERS)
    if isinstance(full, dict):
        fields = _flat_rope_fields(full, names)
        if names.sliding_theta is not None and isinstance(sliding, dict):
            fields[names.sliding_theta] = sliding.get("rope_theta")
        return fields
    if any(isinstance(value, dict) for value in rope.values()):  # layer types that Transformers 4 does not know
        return {}
    return _flat_rope_fields(rope, names)


def _flat_rope_fields(rope: Fields, names: RopeNames) -> dict[str, JsonValue]:
    """Return one group of rope settings under the names of Transformers 4."""
    scaling: dict[str, JsonValue] = {
        key: value
        for key, value in rope.items()
        if key not in ("rope_theta", "rope_type", "type", "partial_rotary_factor") and value is not None
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or scaling:
        scaling = {names.type_key: kind, **scaling}
    if names.scaling_keys is not None:
        scaling = {key: value for key, value in scaling.items() if key in names.scaling_keys}
    fields: dict[str, JsonValue] = {"rope_scaling": scaling or None}
    if "rope_theta" in rope:
        fields[names.theta] = rope["rope_theta"]
    if kind == "longrope" and "factor" not in rope and _ORIGINAL_POSITIONS in rope:
        fields[_ORIGINAL_POSITIONS] = rope[_ORIGINAL_POSITIONS]  # otherwise Transformers 4 needs the factor
    if rope.get("partial_rotary_factor") is not None:
        fields[names.fraction] = rope["partial_rotary_factor"]
    return fields


def _add_dtype_names(fields: Fields) -> dict[str, JsonValue]:
    """Return a config with its dtype under both names, of which a reader knows one."""
    return {**fields, **({"torch_dtype": fields["dtype"]} if "dtype" in fields else {})}


def _load(config_class: "type[PretrainedConfig]", fields: Fields) -> dict[str, JsonValue] | None:
    """Return a config as Transformers loads it; None if it does not load."""
    try:
        loaded = config_class.from_dict(copy.deepcopy(dict(fields))).to_dict()
    except Exception:  # a base's own field that only another version accepts
        return None
    return dict(json.loads(json.dumps({**loaded, "transformers_version": None})))


def _is_same(loaded: JsonValue, wanted: JsonValue) -> bool:
    """Return whether a loaded config is the wanted one; some keep the earlier names as fields without effect."""
    if not isinstance(loaded, dict) or not isinstance(wanted, dict):
        return canonical_json(loaded) == canonical_json(wanted)
    return wanted.keys() <= loaded.keys() and all(
        _is_same(value, wanted[name]) if name in wanted else name in _LEGACY_NAMES for name, value in loaded.items()
    )
