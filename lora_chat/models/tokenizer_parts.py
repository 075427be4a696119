"""A loaded tokenizer in parts, so that a message can name the part that differs."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from lora_chat.models.base_settings import TOKENIZER_ATTRIBUTES, read_compared_fields, value_or_digest
from lora_chat.system.bounded_files import LARGE_FILE_BYTES, read_bytes
from lora_chat.system.hashing import digest_text

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerBase

_PIPELINE_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_NON_VOCABULARY_FILES = (
    "config.json",
    "generation_config.json",
    "sha256.json",
    "complete.json",
    "README.txt",
    "LICENSE.txt",
)
_VOCABULARY_SUFFIXES = (".json", ".model", ".txt", ".vocab", ".bpe", ".spm", ".tiktoken", ".merges")


def read_tokenizer_parts(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> dict[str, JsonValue]:
    """Return the class, backend, special tokens and attributes of a tokenizer, and the other fields of its files.

    Raises IntegrityError for a settings file that cannot be read.
    """
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    extra = [str(token) for token in getattr(tokenizer, "extra_special_tokens", None) or []]
    parts: dict[str, JsonValue] = {
        "class": type(tokenizer).__name__,
        "special_tokens": value_or_digest({**special}),
        "extra_special_tokens": value_or_digest([*extra]),
        "added_tokens": digest_text(repr(sorted(map(_token_fields, tokenizer.added_tokens_decoder.items())))),
    }
    parts |= {name: value_or_digest(_to_json_value(getattr(tokenizer, name, None))) for name in TOKENIZER_ATTRIBUTES}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts |= _backend_parts(backend) if backend is not None else _file_parts(folder, tokenizer)
    for name in _SETTINGS_FILES:
        parts |= {f"{name}.{key}": value for key, value in (read_compared_fields(folder, name) or {}).items()}
    return parts


def _backend_parts(backend: "Tokenizer") -> dict[str, JsonValue]:
    """Return the digests of a backend and of its steps."""
    steps: dict[str, JsonValue] = {}
    for name in _PIPELINE_STEPS:
        step = getattr(backend, name)
        steps[name] = None if step is None else digest_text(step.__getstate__().decode())
    return steps | {"backend": digest_text(_backend_json(backend))}


def _backend_json(backend: "Tokenizer") -> str:
    """Return the JSON of a backend without truncation and padding, which every call sets."""
    truncation, padding = backend.truncation, backend.padding
    if truncation is None and padding is None:
        return str(backend.to_str())
    backend.no_truncation()
    backend.no_padding()
    try:
        return str(backend.to_str())
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def _file_parts(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> dict[str, JsonValue]:
    """Return the digests of the files of a tokenizer without a backend.

    Raises IntegrityError for a file that is larger than any vocabulary.
    """
    named = set(type(tokenizer).vocab_files_names.values())  # some end in `.codes`
    paths = [
        path
        for path in sorted(folder.iterdir())
        if (path.suffix in _VOCABULARY_SUFFIXES or path.name in named)
        and path.name not in (*_NON_VOCABULARY_FILES, *_SETTINGS_FILES)
        and not path.name.endswith(".safetensors.index.json")
        and path.is_file()
    ]
    return {f"file {path.name}": hashlib.sha256(read_bytes(path, LARGE_FILE_BYTES)).hexdigest() for path in paths}


def _token_fields(item: "tuple[int, AddedToken]") -> tuple[int, str, bool, bool, bool, bool, bool]:
    """Return the id of an added token and all of its attributes."""
    token_id, token = item
    return token_id, token.content, token.single_word, token.lstrip, token.rstrip, token.normalized, token.special


def _to_json_value(value: object) -> JsonValue:
    """Return a value as JSON; other objects become their text."""
    if isinstance(value, list | tuple):
        return [_to_json_value(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
