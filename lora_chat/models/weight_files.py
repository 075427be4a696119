"""The files of weights that Transformers opens for a base, and what makes it open others."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.models.base_settings import read_lenient_json_object
from lora_chat.system.hub_cache import find_repository_folder, is_blob_link

SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
# Transformers loads an adapter that lies in a base's folder, and nothing tells (`integrations/peft.py`).
_ADAPTER_FILE = re.compile(r"adapter_config\.json|adapter_model\..*")
# Files of this name replace all other weights (`distributed/checkpoint.py`).
_DISTRIBUTED_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_MAX_SHARDS = 10_000


def find_weight_files(folder: Path, config: Any) -> list[Path]:
    """Return every file that loading a base's weights opens, the index of shards included.

    `config` is the base's config as Transformers loads it. Raises IntegrityError if something in the folder makes
    Transformers open other files, UnavailableError if there are no weights.
    """
    check_no_other_weights(folder, config)
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        names = [SAFE_WEIGHTS_NAME]
    elif (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        names = [SAFE_WEIGHTS_INDEX_NAME, *list_shards(folder / SAFE_WEIGHTS_INDEX_NAME)]
    else:
        raise UnavailableError(
            f"{folder} has no weights in safetensors: neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}.\n"
            "Name a folder in Hugging Face layout (config.json, tokenizer.json, *.safetensors)."
        )
    for part in _list_model_configs(config):
        for name in (*getattr(type(part), "extra_files", ()), *getattr(type(part), "extra_config_files", ())):
            if name not in names and (folder / name).exists():
                names.append(name)
    paths = [folder / name for name in names]
    for path in paths:
        check_regular_file(folder, path)
    return paths


def check_no_other_weights(folder: Path, config: Any) -> None:
    """Raise IntegrityError if a base's folder makes Transformers load weights that are not the base's own."""
    check_no_adapter(folder)
    for path in sorted(folder.iterdir()):
        if _DISTRIBUTED_SHARD.fullmatch(path.name):
            raise IntegrityError(
                f"The base {folder} holds a distributed checkpoint, which would replace its weights ({path.name}).\n"
                f"Fix: use a folder that holds the base alone, or remove {path.name}."
            )
    raw = read_lenient_json_object(folder / "config.json") or {}
    named = "transformers_weights" in raw or any(
        getattr(part, "transformers_weights", None) is not None for part in _list_model_configs(config)
    )
    for key, is_there in (("transformers_weights", named), ("configuration_files", "configuration_files" in raw)):
        if is_there:
            raise IntegrityError(
                f"The config of the base {folder} sends Transformers to other files ({key}).\n"
                f"Fix: use the base as its authors publish it, or remove {key} from config.json."
            )


def check_no_adapter(folder: Path) -> None:
    """Raise IntegrityError if a base's folder holds an adapter, whose config can even name another base to load."""
    for path in sorted(folder.iterdir()):
        if _ADAPTER_FILE.fullmatch(path.name):
            raise IntegrityError(
                f"The base {folder} holds an adapter, which would be loaded with it unnoticed ({path.name}).\n"
                f"Fix: use a folder that holds the base alone, or remove {path.name}."
            )


def _list_model_configs(config: Any) -> list[Any]:
    """Return a config and the part of it that a causal language model is built from."""
    try:
        text = config.get_text_config()
    except ValueError:  # a config of several parts, none of which is the text's
        text = config
    return [config] if text is config else [config, text]


def list_shards(index: Path) -> list[str]:
    """Return the files that an index names. Raises IntegrityError for an odd one, or for names outside of the base."""
    shards = (read_lenient_json_object(index) or {}).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise IntegrityError(f"{index} is damaged: it has no weight_map of names.")
    names = sorted(set(shards.values()))
    if len(names) > _MAX_SHARDS:
        raise IntegrityError(f"{index} names {len(names):,} files; at most {_MAX_SHARDS:,} are read.")
    for name in names:
        place = PurePosixPath(name)
        odd = not place.parts or place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name
        if odd or place.suffix != ".safetensors" or str(place) != name or not name.isprintable():
            raise IntegrityError(f"{index} names a file outside of the base or of another kind: {ascii(name)[:100]}.")
    return names


def check_regular_file(folder: Path, path: Path) -> None:
    """Raise IntegrityError unless a file of the base is a regular one; the hub's cache alone may link to its blobs."""
    root = folder.resolve()
    may_link = is_blob_link(root / path.relative_to(folder), find_repository_folder(root))
    for inner in (path, *path.parents):
        if inner == folder:
            break
        if inner.is_symlink() and (inner != path or not may_link):
            raise IntegrityError(
                f"{inner} is a link; only the hub's cache links its files.\nFix: put the file itself in its place."
            )
    if not path.is_file():
        raise IntegrityError(f"{path} is missing or is not a regular file, and the base names it among its weights.")
