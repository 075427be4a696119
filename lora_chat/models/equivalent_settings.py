"""Settings that differ as they are written and load the same, because versions of Transformers write other defaults."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from lora_chat.errors import IntegrityError
from lora_chat.models.base_settings import canonical_json, read_lenient_json_object, value_or_digest
from lora_chat.models.config_checks import check_config_limits, check_no_remote_code

_ROPE_FIELD = "rope_parameters"
_LEGACY_ROPE_FIELDS = ("rope_theta", "rope_scaling")
"""Earlier fields of the rotary embedding's settings, which Transformers moves into `rope_parameters`."""
_RAW_FIELDS = ("model_type", "transformers_weights", "configuration_files", "auto_map", "quantization_config")
"""Fields that Transformers reads from the file itself, not from the loaded config."""
_METADATA_FIELDS = ("_from_model_config", "transformers_version")
_PER_CALL_FIELDS = ("eos_token_id", "pad_token_id", "bos_token_id", "use_cache", "do_sample", "max_new_tokens")
"""Generation settings that every call sets; the stop ids are compared separately."""
_BACKEND_FIELD = "tokenizer_config.json.backend"

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Fields = Mapping[str, JsonValue]


def find_equivalent_config_fields(
    folder: Path, config: "PretrainedConfig", trained: Fields, current: Fields
) -> set[str]:
    """Return the differing fields of a config that change nothing: defaults that only one side names.

    `folder` contains the current base and `config` is its config as Transformers loads it; `trained` and `current` are
    the fields of two identities. Both versions are loaded, and must give the same config.
    """
    raw = read_lenient_json_object(folder / "config.json") or {}
    fields = {name for name in trained.keys() | current.keys() if _may_be_equivalent(name, trained, current)}
    if not fields or "all" in trained.keys() | current.keys():
        return set()
    config_class = type(config)
    try:
        known = _load_config_dict(config_class, {name: value for name, value in raw.items() if name not in fields})
        # Only fields that Transformers knows can have defaults.
        fields = {name for name in fields if name in known.keys() | set(_LEGACY_ROPE_FIELDS)}
        # The config of training: the fields on disk, with the trained values of the differing fields.
        trained_raw = {name: value for name, value in raw.items() if name not in fields}
        for name in sorted(fields & trained.keys()):
            if value_or_digest(known.get(name)) != trained[name]:  # otherwise it is the default, possibly as a digest
                trained_raw[name] = trained[name]
        check_config_limits(trained_raw, "config")
        check_no_remote_code(trained_raw, "config")
        loaded, trained_loaded = _load_config_dict(config_class, raw), _load_config_dict(config_class, trained_raw)
        is_same = canonical_json(loaded) == canonical_json(trained_loaded) and all(
            _legacy_rope_matches(loaded, part) for part in (raw, trained_raw)
        )
    except Exception:  # untrusted fields may not load as a config; then they count as a difference
        return set()
    return fields if is_same else set()


def _may_be_equivalent(name: str, trained: Fields, current: Fields) -> bool:
    """Return whether a field can differ without effect: one side lacks it, or each has parts of the rope settings."""
    if name in _RAW_FIELDS:
        return False
    if name not in trained or name not in current:
        return True
    first, second = trained[name], current[name]
    if name != _ROPE_FIELD or not isinstance(first, dict) or not isinstance(second, dict) or first == second:
        return False
    return all(canonical_json(first[key]) == canonical_json(second[key]) for key in first.keys() & second.keys())


def _load_config_dict(config_class: "type[PretrainedConfig]", fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the fields of a config after Transformers loaded it, with all defaults."""
    loaded = config_class.from_dict(copy.deepcopy(dict(fields))).to_dict()
    return dict(json.loads(json.dumps(loaded)))


def _legacy_rope_matches(loaded: Mapping[str, JsonValue], fields: Mapping[str, JsonValue]) -> bool:
    """Return whether the earlier rope fields, which other programs read, agree with the loaded config."""
    rope = loaded.get(_ROPE_FIELD)
    rope = rope if isinstance(rope, dict) else {}
    theta, scaling = (fields.get(name) for name in _LEGACY_ROPE_FIELDS)
    has_theta = theta is None or theta == rope.get("rope_theta")
    if not scaling:
        return has_theta
    return has_theta and isinstance(scaling, dict) and all(rope.get(key) == value for key, value in scaling.items())


def is_equivalent_generation(folder: Path, trained: Fields | None, current: Fields | None) -> bool:
    """Return whether different generation settings load the same. None means that there is no file.

    Without the file, Transformers takes the settings from the config.
    """
    first, second = trained or {}, current or {}
    if any(name in second and canonical_json(second[name]) != canonical_json(value) for name, value in first.items()):
        return False
    try:
        config = read_lenient_json_object(folder / "config.json") or {}
        return _effective_settings(trained, config) == _effective_settings(current, config)
    except Exception:  # untrusted fields, as above
        return False


def _effective_settings(fields: Fields | None, config: Mapping[str, JsonValue]) -> str:
    """Return the generation settings that have an effect, as canonical JSON."""
    from transformers import GenerationConfig

    known = GenerationConfig().to_dict()
    if fields is None:
        settings = GenerationConfig.from_model_config(copy.deepcopy(dict(config))).to_dict()
    elif fields.keys() <= known.keys():
        settings = GenerationConfig.from_dict(copy.deepcopy(dict(fields))).to_dict()
    else:
        raise IntegrityError("unknown generation settings")
    defaults = GenerationConfig._get_default_generation_params()
    effective = {n: value for n, value in settings.items() if n not in (*_METADATA_FIELDS, *_PER_CALL_FIELDS)}
    effective = {name: defaults.get(name) if value is None else value for name, value in effective.items()}
    # False is the default of these two.
    unset = {name for name in ("output_attentions", "output_hidden_states") if not effective.get(name)}
    return canonical_json({name: v for name, v in effective.items() if v is not None and name not in unset})


def find_equivalent_tokenizer_fields(trained: Fields, current: Fields) -> set[str]:
    """Return the differing fields of a tokenizer's files that only name the backend of the loaded tokenizer."""
    values = [trained.get(_BACKEND_FIELD, "tokenizers"), current.get(_BACKEND_FIELD, "tokenizers")]
    return {_BACKEND_FIELD} if values == ["tokenizers"] * 2 and "backend" in current else set()
