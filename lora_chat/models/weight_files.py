"""The files of weights that Transformers opens for a base; folders that make it open other files are refused."""

import os
import re
import shlex
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.models.base_settings import read_lenient_json_object
from lora_chat.system.hub_cache import find_repository_folder, is_blob_link
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
# Transformers loads an adapter in a base's folder without a message (`integrations/peft.py`).
_ADAPTER_FILE = re.compile(r"adapter_config\.json|adapter_model\..*")
# Files with such names replace all other weights (`distributed/checkpoint.py`).
_DISTRIBUTED_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_MAX_SHARDS = 10_000
_MAX_POINTER_BYTES = 1024
_POINTER_START = b"version https://git-lfs.github.com/spec/"
_PICKLED_WEIGHTS = re.compile(r"(pytorch_model|model|consolidated)[A-Za-z0-9._-]{0,100}\.(bin|pth|pt|ckpt)")
_CONVERSION = (
    "import glob, torch; from safetensors.torch import save_file; "
    "weights = {name: value.clone().contiguous() for file in sorted(glob.glob('PATTERN')) "
    "for name, value in torch.load(file, map_location='cpu', weights_only=True).items()}; "
    "save_file(weights, 'model.safetensors', metadata={'format': 'pt'})"
)
"""Program that writes pickled weights as safetensors."""


def find_weight_files(folder: Path, config: "PretrainedConfig") -> list[Path]:
    """Return every file that Transformers opens for a base's weights, with the index of shards.

    `config` is the base's config as Transformers loads it. Raises IntegrityError if the folder makes Transformers open
    other files, UnavailableError if there are no weights.
    """
    check_no_other_weights(folder, config)
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        names = [SAFE_WEIGHTS_NAME]
    elif (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        names = [SAFE_WEIGHTS_INDEX_NAME, *list_shards(folder / SAFE_WEIGHTS_INDEX_NAME)]
    else:
        check_no_pickles_alone(folder)
        raise UnavailableError(
            f"{folder} has no weights in safetensors: neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}.\n"
            "Fix: name a folder in Hugging Face layout (config.json, tokenizer.json, *.safetensors)."
        )
    for part in _list_model_configs(config):
        for name in (*getattr(type(part), "extra_files", ()), *getattr(type(part), "extra_config_files", ())):
            if name not in names and (folder / name).exists():
                names.append(name)
    paths = [folder / name for name in names]
    for path in paths:
        check_regular_file(folder, path)
    return paths


def check_no_other_weights(folder: Path, config: "PretrainedConfig") -> None:
    """Raise IntegrityError if a base's folder makes Transformers load weights other than the base's."""
    check_no_adapter(folder)
    for path in sorted(folder.iterdir()):
        if _DISTRIBUTED_SHARD.fullmatch(path.name):
            raise IntegrityError(
                f"The base {folder} contains a distributed checkpoint, which would replace its weights ({path.name}).\n"
                f"Fix: use a folder that contains only the base, or remove {path.name}."
            )
    raw = read_lenient_json_object(folder / "config.json") or {}
    names_weights = "transformers_weights" in raw or any(
        getattr(part, "transformers_weights", None) is not None for part in _list_model_configs(config)
    )
    for key, is_present in (
        ("transformers_weights", names_weights),
        ("configuration_files", "configuration_files" in raw),
    ):
        if is_present:
            raise IntegrityError(
                f"The config of the base {folder} makes Transformers load other files ({key}).\n"
                f"Fix: use the base as its authors publish it, or remove {key} from config.json."
            )


def check_no_adapter(folder: Path) -> None:
    """Raise IntegrityError if a base's folder contains an adapter, whose config could even name another base."""
    for path in sorted(folder.iterdir()):
        if _ADAPTER_FILE.fullmatch(path.name):
            raise IntegrityError(
                f"The base {folder} contains an adapter, which would be loaded without a message ({path.name}).\n"
                f"Fix: use a folder that contains only the base, or remove {path.name}."
            )


def check_no_pointers(folder: Path) -> None:
    """Raise UnavailableError if files of a folder are pointers of Git LFS, which `git clone` leaves without git-lfs."""
    pointers = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size <= _MAX_POINTER_BYTES:
            with os.fdopen(open_regular_file(path, follow=True), "rb") as file:
                if file.read(len(_POINTER_START)) == _POINTER_START:
                    pointers.append(path.name)
    if pointers:
        more = f" and {len(pointers) - 3} more files" if len(pointers) > 3 else ""
        raise UnavailableError(
            f"{folder} contains pointers of Git LFS in place of files: "
            f"{', '.join(sanitize_line(name, 100) for name in pointers[:3])}{more}.\n"
            f"Fix: git lfs install && git -C {shlex.quote(str(folder))} lfs pull"
        )


def check_no_pickles_alone(folder: Path) -> None:
    """Raise UnavailableError, with the command that converts them, if a folder has only pickled weights.

    Opening a pickle can run code. The command reads tensors and nothing else (`weights_only`).
    """
    pickles = sorted(
        filter(None, (_PICKLED_WEIGHTS.fullmatch(path.name) for path in folder.iterdir())), key=lambda match: match[0]
    )
    has_safe_weights = (folder / SAFE_WEIGHTS_NAME).is_file() or (folder / SAFE_WEIGHTS_INDEX_NAME).is_file()
    if not pickles or has_safe_weights:
        return
    program = _CONVERSION.replace("PATTERN", f"{pickles[0][1]}*.{pickles[0][2]}")
    raise UnavailableError(
        f"{folder} has only pickled weights ({pickles[0][0]}), which are never read, because opening "
        "them can run code.\nFix: use a repository or revision with safetensors, or convert them with a command that "
        f'reads only tensors: cd {shlex.quote(str(folder))} && python -c "{program}"'
    )


def _list_model_configs(config: "PretrainedConfig") -> "list[PretrainedConfig]":
    """Return a config and its part for a causal language model."""
    try:
        text = config.get_text_config()
    except ValueError:  # a config of several parts without one for text
        text = config
    return [config] if text is config else [config, text]


def list_shards(index: Path) -> list[str]:
    """Return the files that an index names. Raises IntegrityError for a damaged index or a file outside of the base."""
    weight_map = (read_lenient_json_object(index) or {}).get("weight_map")
    shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
    names = sorted({name for name in shards if isinstance(name, str)})
    if not names or not all(isinstance(name, str) for name in shards):
        raise IntegrityError(f"{index} is damaged: it has no weight_map of file names.")
    if len(names) > _MAX_SHARDS:
        raise IntegrityError(f"{index} names {len(names):,} files; the limit is {_MAX_SHARDS:,}.")
    for name in names:
        path = PurePosixPath(name)
        is_outside = not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
        if is_outside or path.suffix != ".safetensors" or str(path) != name or not name.isprintable():
            raise IntegrityError(f"{index} names a file outside of the base or of another kind: {ascii(name)[:100]}.")
    return names


def check_regular_file(folder: Path, path: Path) -> None:
    """Raise IntegrityError unless a file of the base is regular. Only the hub's cache may link to its blobs."""
    root = folder.resolve()
    may_link = is_blob_link(root / path.relative_to(folder), find_repository_folder(root))
    for inner in (path, *path.parents):
        if inner == folder:
            break
        if inner.is_symlink() and (inner != path or not may_link):
            raise IntegrityError(
                f"{inner} is a link; only the hub's cache may contain links.\nFix: replace the link by the file."
            )
    if not path.is_file():
        raise IntegrityError(
            f"{path} is missing or is not a regular file, but the base's weights include it.\n"
            "Fix: copy or download the base again."
        )
