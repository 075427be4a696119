"""Settings that one file names and another leaves out, and that load the same: each version writes other defaults."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from lora_chat.errors import IntegrityError
from lora_chat.models.base_settings import canonical_json, read_lenient_json_object, value_or_digest
from lora_chat.models.config_checks import check_config_limits, check_no_remote_code

_ROPE_FIELD = "rope_parameters"
_LEGACY_ROPE_FIELDS = ("rope_theta", "rope_scaling")
"""Earlier names of the rotary embedding's settings; Transformers moves them into `rope_parameters`."""
_RAW_FIELDS = ("model_type", "transformers_weights", "configuration_files", "auto_map", "quantization_config")
"""Fields that are read from the file itself, not from the config that is made of it."""
_METADATA_FIELDS = ("_from_model_config", "transformers_version")
_PER_CALL_FIELDS = ("eos_token_id", "pad_token_id", "bos_token_id", "use_cache", "do_sample", "max_new_tokens")
"""Generation settings that every call gives itself; the stop ids are compared on their own."""
_BACKEND_FIELD = "tokenizer_config.json.backend"

Fields = Mapping[str, JsonValue]


def find_equivalent_config_fields(folder: Path, config: Any, trained: Fields, found: Fields) -> set[str]:
    """Return the differing fields of a config that change nothing: defaults, named on one side and absent on the other.

    `folder` holds the base that was found and `config` is its config as Transformers loads it; `trained` and `found`
    are the fields of two identities. Both ways of writing are loaded, and must give the same config here.
    """
    raw = read_lenient_json_object(folder / "config.json") or {}
    fields = {name for name in trained.keys() | found.keys() if _may_be_equivalent(name, trained, found)}
    if not fields or "all" in trained.keys() | found.keys():
        return set()
    kind = type(config)
    try:
        known = _load_config_dict(kind, {name: value for name, value in raw.items() if name not in fields})
        fields = {name for name in fields if name in known.keys() | set(_LEGACY_ROPE_FIELDS)}
        theirs = {name: value for name, value in raw.items() if name not in fields}
        for name in sorted(fields & trained.keys()):
            if value_or_digest(known.get(name)) != trained[name]:  # else it may be a digest, and is the default anyway
                theirs[name] = trained[name]
        check_config_limits(theirs, "config")
        check_no_remote_code(theirs, "config")
        ours, others = _load_config_dict(kind, raw), _load_config_dict(kind, theirs)
        same = canonical_json(ours) == canonical_json(others) and all(
            _legacy_rope_matches(ours, part) for part in (raw, theirs)
        )
    except Exception:  # fields of a stranger, which need not mean a config; then the difference stands
        return set()
    return fields if same else set()


def _may_be_equivalent(name: str, trained: Fields, found: Fields) -> bool:
    if name in _RAW_FIELDS:
        return False
    if name not in trained or name not in found:
        return True
    mine, yours = trained[name], found[name]
    if name != _ROPE_FIELD or not isinstance(mine, dict) or not isinstance(yours, dict) or mine == yours:
        return False
    return all(canonical_json(mine[key]) == canonical_json(yours[key]) for key in mine.keys() & yours.keys())


def _load_config_dict(kind: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    loaded = kind.from_dict(copy.deepcopy(dict(fields))).to_dict()
    return dict(json.loads(json.dumps(loaded)))


def _legacy_rope_matches(loaded: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Whether the earlier names, which other programs read too, say the same as the config that was made of them."""
    rope = loaded.get(_ROPE_FIELD) or {}
    theta, scaling = (fields.get(name) for name in _LEGACY_ROPE_FIELDS)
    return (theta is None or theta == rope.get("rope_theta")) and (
        not scaling or all(rope.get(key) == value for key, value in scaling.items())
    )


def is_equivalent_generation(folder: Path, trained: Fields | None, found: Fields | None) -> bool:
    """Return whether generation settings that differ mean the same; None stands for a file that is not there.

    Without the file, Transformers takes the settings from the config.
    """
    mine, yours = trained or {}, found or {}
    if any(name in yours and canonical_json(yours[name]) != canonical_json(value) for name, value in mine.items()):
        return False
    try:
        config = read_lenient_json_object(folder / "config.json") or {}
        return _effective_settings(trained, config) == _effective_settings(found, config)
    except Exception:  # as above
        return False


def _effective_settings(fields: Fields | None, config: Mapping[str, Any]) -> str:
    from transformers import GenerationConfig

    known = GenerationConfig().to_dict()
    if fields is None:
        settings = GenerationConfig.from_model_config(copy.deepcopy(dict(config))).to_dict()
    elif fields.keys() <= known.keys():
        settings = GenerationConfig.from_dict(copy.deepcopy(dict(fields))).to_dict()
    else:
        raise IntegrityError("unknown generation settings")
    defaults = GenerationConfig._get_default_generation_params()
    given = {name: value for name, value in settings.items() if name not in (*_METADATA_FIELDS, *_PER_CALL_FIELDS)}
    given = {name: defaults.get(name) if value is None else value for name, value in given.items()}
    no = {
        name for name in ("output_attentions", "output_hidden_states") if not given.get(name)
    }  # false is their default
    return canonical_json({name: value for name, value in given.items() if value is not None and name not in no})


def find_equivalent_tokenizer_fields(trained: Fields, found: Fields) -> set[str]:
    """Return the differing fields of a tokenizer's files that only name what the loaded tokenizer is."""
    values = [trained.get(_BACKEND_FIELD, "tokenizers"), found.get(_BACKEND_FIELD, "tokenizers")]
    return {_BACKEND_FIELD} if values == ["tokenizers"] * 2 and "backend" in found else set()
