"""The small files of a base, bounded before transformers and tokenizers read them: they may be anybody's."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_chat.errors import UnavailableError
from lora_chat.models.config_checks import check_config_limits, check_generation_config, check_no_remote_code
from lora_chat.models.weight_files import check_no_adapter
from lora_chat.system.bounded_files import (
    LARGE_FILE_BYTES,
    MEDIUM_FILE_BYTES,
    SMALL_FILE_BYTES,
    read_bytes,
    read_json,
    read_text,
)

_CONFIG_NAME, _TOKENIZER_NAME = "config.json", "tokenizer.json"
_JSON_LIMITS_BYTES = {
    _CONFIG_NAME: SMALL_FILE_BYTES,
    "generation_config.json": SMALL_FILE_BYTES,
    "adapter_config.json": SMALL_FILE_BYTES,
    "modelcard.json": SMALL_FILE_BYTES,
    "preprocessor_config.json": SMALL_FILE_BYTES,
    "processor_config.json": SMALL_FILE_BYTES,
    "video_preprocessor_config.json": SMALL_FILE_BYTES,
    "audio_tokenizer_config.json": SMALL_FILE_BYTES,
    "chat_template.json": SMALL_FILE_BYTES,
    "special_tokens_map.json": MEDIUM_FILE_BYTES,
    "added_tokens.json": MEDIUM_FILE_BYTES,
    "tokenizer_config.json": MEDIUM_FILE_BYTES,
    "model.safetensors.index.json": MEDIUM_FILE_BYTES,
    "vocab.json": LARGE_FILE_BYTES,
    _TOKENIZER_NAME: LARGE_FILE_BYTES,
}
"""Every JSON file that transformers or tokenizers may read, with the most bytes it may have."""
_VOCABULARY_NAMES = "tokenizer.model", "sentencepiece.model", "spm.model", "tiktoken.model", "vocab.txt", "merges.txt"
"""Vocabularies in other formats than JSON."""
_TEMPLATE_PATTERNS = "chat_template.jinja", "additional_chat_templates/*.jinja"
_MAX_ADDED_TOKENS = 100_000
"""Added tokens, each of which is searched for in every text; the most seen are 33,000, for the parts of pictures."""


def check_base_files(folder: Path) -> Mapping[str, Any]:
    """Check all files of a base that describe it, and return its config.

    Raises UnavailableError naming the file that is too large, nested too deeply, not JSON or not UTF-8, or holds
    numbers that no base has; IntegrityError if something makes Transformers run other code or load an adapter.
    """
    try:
        check_no_adapter(folder)
        names = [*_JSON_LIMITS_BYTES, *_VOCABULARY_NAMES]
        marks = {name: found for name in names if (found := _stat_key(folder / name))}
        marks |= {str(path): _stat_key(path) for pattern in _TEMPLATE_PATTERNS for path in folder.glob(pattern)}
        return _check_files(folder, tuple(sorted(marks.items())))
    except OSError as error:
        raise UnavailableError(f"The base {folder} cannot be read: {error.strerror or error}.") from error


def _stat_key(path: Path) -> tuple[int, ...]:
    """What changes when a file does; nothing for one that is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=8)
def _check_files(folder: Path, _marks: tuple[tuple[str, tuple[int, ...]], ...]) -> Mapping[str, Any]:
    """Check once what is opened several times: a large vocabulary takes half a second."""
    for name in _VOCABULARY_NAMES:
        if (folder / name).exists():
            read_bytes(folder / name, LARGE_FILE_BYTES, UnavailableError)
    for pattern in _TEMPLATE_PATTERNS:
        for path in folder.glob(pattern):
            read_text(path, SMALL_FILE_BYTES, UnavailableError)
    config: dict[str, Any] = {}
    for name, max_bytes in _JSON_LIMITS_BYTES.items():
        path = folder / name
        if not path.exists():
            continue
        content = read_json(path, max_bytes, UnavailableError)
        if not isinstance(content, dict) and name != "chat_template.json":
            raise UnavailableError(f"{path} holds no JSON object. Replace it.")
        if name in (_CONFIG_NAME, "generation_config.json"):
            check_config_limits(content, str(path))
            check_no_remote_code(content, str(path))
            check_generation_config(content, str(path))
        elif name.startswith(("tokenizer", "special_tokens_map", "added_tokens")):
            _check_added_tokens(content, path)
        if name == _CONFIG_NAME:
            config = content
    return config


def _check_added_tokens(found: dict[str, Any], path: Path) -> None:
    """Raise UnavailableError for more added tokens than a base can need."""
    if path.name == "added_tokens.json":
        found = {"added_tokens": found}
    for key in ("added_tokens", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
        some = found.get(key)
        if isinstance(some, list | dict) and len(some) > _MAX_ADDED_TOKENS:
            raise UnavailableError(f"{path}: {key} has {len(some):,} tokens; at most {_MAX_ADDED_TOKENS:,} are read.")
