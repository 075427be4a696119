"""Settings that one file names and another leaves out, and that load the same: each version writes other defaults."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from lora_chat.errors import IntegrityError
from lora_chat.models.base_settings import canonical, read_object, short_value
from lora_chat.models.config_code import check_no_code
from lora_chat.models.config_limits import check_config

_ROPE = "rope_parameters"
_OLD_ROPE = ("rope_theta", "rope_scaling")
"""Earlier names of the rotary embedding's settings; Transformers moves them into `rope_parameters`."""
_NEVER = ("model_type", "transformers_weights", "configuration_files", "auto_map", "quantization_config")
"""Fields that are read from the file itself, not from the config that is made of it."""
_METADATA = ("_from_model_config", "transformers_version")
_BY_CALL = ("eos_token_id", "pad_token_id", "bos_token_id", "use_cache", "do_sample", "max_new_tokens")
"""Generation settings that every call gives itself; the stop ids are compared on their own."""
_BACKEND = "tokenizer_config.json.backend"

Fields = Mapping[str, JsonValue]


def same_when_loaded(folder: Path, config: Any, trained: Fields, found: Fields) -> set[str]:
    """Return the differing fields of a config that change nothing: defaults, named on one side and absent on the other.

    `folder` holds the base that was found and `config` is its config as Transformers loads it; `trained` and `found`
    are the fields of two identities. Both ways of writing are loaded, and must give the same config here.
    """
    raw = read_object(folder / "config.json") or {}
    fields = {name for name in trained.keys() | found.keys() if _may_be_same(name, trained, found)}
    if not fields or "all" in trained.keys() | found.keys():
        return set()
    kind = type(config)
    try:
        known = _loaded(kind, {name: value for name, value in raw.items() if name not in fields})
        fields = {name for name in fields if name in known.keys() | set(_OLD_ROPE)}
        theirs = {name: value for name, value in raw.items() if name not in fields}
        for name in sorted(fields & trained.keys()):
            if short_value(known.get(name)) != trained[name]:  # else it may be a digest, and is the default anyway
                theirs[name] = trained[name]
        check_config(theirs, "config")
        check_no_code(theirs, "config")
        ours, others = _loaded(kind, raw), _loaded(kind, theirs)
        same = canonical(ours) == canonical(others) and all(_is_old_rope_of(ours, part) for part in (raw, theirs))
    except Exception:  # fields of a stranger, which need not mean a config; then the difference stands
        return set()
    return fields if same else set()


def _may_be_same(name: str, trained: Fields, found: Fields) -> bool:
    if name in _NEVER:
        return False
    if name not in trained or name not in found:
        return True
    mine, yours = trained[name], found[name]
    if name != _ROPE or not isinstance(mine, dict) or not isinstance(yours, dict) or mine == yours:
        return False
    return all(canonical(mine[key]) == canonical(yours[key]) for key in mine.keys() & yours.keys())


def _loaded(kind: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    loaded = kind.from_dict(copy.deepcopy(dict(fields))).to_dict()
    return dict(json.loads(json.dumps(loaded)))


def _is_old_rope_of(loaded: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Whether the earlier names, which other programs read too, say the same as the config that was made of them."""
    rope = loaded.get(_ROPE) or {}
    theta, scaling = (fields.get(name) for name in _OLD_ROPE)
    return (theta is None or theta == rope.get("rope_theta")) and (
        not scaling or all(rope.get(key) == value for key, value in scaling.items())
    )


def same_generation(folder: Path, trained: Fields | None, found: Fields | None) -> bool:
    """Return whether generation settings that differ mean the same; None stands for a file that is not there.

    Without the file, Transformers takes the settings from the config.
    """
    mine, yours = trained or {}, found or {}
    if any(name in yours and canonical(yours[name]) != canonical(value) for name, value in mine.items()):
        return False
    try:
        config = read_object(folder / "config.json") or {}
        return _effective(trained, config) == _effective(found, config)
    except Exception:  # as above
        return False


def _effective(fields: Fields | None, config: Mapping[str, Any]) -> str:
    from transformers import GenerationConfig

    known = GenerationConfig().to_dict()
    if fields is None:
        settings = GenerationConfig.from_model_config(copy.deepcopy(dict(config))).to_dict()
    elif fields.keys() <= known.keys():
        settings = GenerationConfig.from_dict(copy.deepcopy(dict(fields))).to_dict()
    else:
        raise IntegrityError("unknown generation settings")
    defaults = GenerationConfig._get_default_generation_params()
    given = {name: value for name, value in settings.items() if name not in (*_METADATA, *_BY_CALL)}
    given = {name: defaults.get(name) if value is None else value for name, value in given.items()}
    no = {
        name for name in ("output_attentions", "output_hidden_states") if not given.get(name)
    }  # false is their default
    return canonical({name: value for name, value in given.items() if value is not None and name not in no})


def same_tokenizer_settings(trained: Fields, found: Fields) -> set[str]:
    """Return the differing fields of a tokenizer's files that only name what the loaded tokenizer is."""
    values = [trained.get(_BACKEND, "tokenizers"), found.get(_BACKEND, "tokenizers")]
    return {_BACKEND} if values == ["tokenizers"] * 2 and "backend" in found else set()
