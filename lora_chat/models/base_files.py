"""The small files of a base, bounded before transformers and tokenizers read them: they may be anybody's."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_chat.errors import BaseUnavailableError
from lora_chat.models.config_code import check_generation, check_no_code
from lora_chat.models.config_limits import check_config
from lora_chat.models.weight_files import check_no_adapter
from lora_chat.system.bounded_files import LARGE, MIDDLE, SMALL, read_bytes, read_json, read_text

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_JSON = {
    _CONFIG: SMALL,
    "generation_config.json": SMALL,
    "adapter_config.json": SMALL,
    "modelcard.json": SMALL,
    "preprocessor_config.json": SMALL,
    "processor_config.json": SMALL,
    "video_preprocessor_config.json": SMALL,
    "audio_tokenizer_config.json": SMALL,
    "chat_template.json": SMALL,
    "special_tokens_map.json": MIDDLE,
    "added_tokens.json": MIDDLE,
    "tokenizer_config.json": MIDDLE,
    "model.safetensors.index.json": MIDDLE,
    "vocab.json": LARGE,
    _TOKENIZER: LARGE,
}
"""Every JSON file that transformers or tokenizers may read, with the most bytes it may have."""
_VOCABULARIES = "tokenizer.model", "sentencepiece.model", "spm.model", "tiktoken.model", "vocab.txt", "merges.txt"
"""Vocabularies in other formats than JSON."""
_TEMPLATES = "chat_template.jinja", "additional_chat_templates/*.jinja"
_MOST_ADDED = 100_000
"""Added tokens, each of which is searched for in every text; the most seen are 33,000, for the parts of pictures."""


def check_base_files(folder: Path) -> Mapping[str, Any]:
    """Check all files of a base that describe it, and return its config.

    Raises BaseUnavailableError naming the file that is too large, nested too deeply, not JSON or not UTF-8, or holds
    numbers that no base has; IntegrityError if something makes Transformers run other code or load an adapter.
    """
    try:
        check_no_adapter(folder)
        names = [*_JSON, *_VOCABULARIES]
        marks = {name: found for name in names if (found := _mark(folder / name))}
        marks |= {str(path): _mark(path) for pattern in _TEMPLATES for path in folder.glob(pattern)}
        return _check(folder, tuple(sorted(marks.items())))
    except OSError as error:
        raise BaseUnavailableError(f"The base {folder} cannot be read: {error.strerror or error}.") from error


def _mark(path: Path) -> tuple[int, ...]:
    """What changes when a file does; nothing for one that is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=8)
def _check(folder: Path, _marks: tuple[tuple[str, tuple[int, ...]], ...]) -> Mapping[str, Any]:
    """Check once what is opened several times: a large vocabulary takes half a second."""
    for name in _VOCABULARIES:
        if (folder / name).exists():
            read_bytes(folder / name, LARGE, BaseUnavailableError)
    for pattern in _TEMPLATES:
        for path in folder.glob(pattern):
            read_text(path, SMALL, BaseUnavailableError)
    config: dict[str, Any] = {}
    for name, most in _JSON.items():
        path = folder / name
        if not path.exists():
            continue
        found = read_json(path, most, BaseUnavailableError)
        if not isinstance(found, dict) and name != "chat_template.json":
            raise BaseUnavailableError(f"{path} holds no JSON object. Replace it.")
        if name in (_CONFIG, "generation_config.json"):
            check_config(found, str(path))
            check_no_code(found, str(path))
            check_generation(found, str(path))
        elif name.startswith(("tokenizer", "special_tokens_map", "added_tokens")):
            _check_added(found, path)
        if name == _CONFIG:
            config = found
    return config


def _check_added(found: dict[str, Any], path: Path) -> None:
    """Raise BaseUnavailableError for more added tokens than a base can need."""
    if path.name == "added_tokens.json":
        found = {"added_tokens": found}
    for key in ("added_tokens", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
        some = found.get(key)
        if isinstance(some, list | dict) and len(some) > _MOST_ADDED:
            raise BaseUnavailableError(f"{path}: {key} has {len(some):,} tokens; at most {_MOST_ADDED:,} are read.")
