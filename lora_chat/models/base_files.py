"""Checks of a base's untrusted small files before Transformers and tokenizers read them."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from lora_chat.errors import UnavailableError
from lora_chat.models.config_checks import check_config_limits, check_generation_config, check_no_remote_code
from lora_chat.models.quantization_checks import check_other_declarations
from lora_chat.models.weight_files import check_no_adapter, check_no_pointers
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
"""Size limit, in bytes, of every JSON file that Transformers or tokenizers may read."""
_VOCABULARY_NAMES = "tokenizer.model", "sentencepiece.model", "spm.model", "tiktoken.model", "vocab.txt", "merges.txt"
"""Names of vocabularies in formats other than JSON."""
VOCABULARY_FILES = (_TOKENIZER_NAME, "vocab.json", *(name for name in _VOCABULARY_NAMES if name != "merges.txt"))
"""Names of files of which a tokenizer needs at least one."""
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
"""Names of all files of a tokenizer."""
_TEMPLATE_PATTERNS = "chat_template.jinja", "additional_chat_templates/*.jinja"
_MAX_ADDED_TOKENS = 100_000
"""Limit of added tokens, each of which is searched for in every text; the largest known base has 33,000."""


def check_base_files(folder: Path) -> Mapping[str, object]:
    """Check all small files of a base and return its config.

    Raises UnavailableError naming a file that is too large, nested too deeply, not JSON or not UTF-8, or has numbers
    out of bounds; IntegrityError if a file makes Transformers run other code or load an adapter.
    """
    try:
        check_no_pointers(folder)
        check_no_adapter(folder)
        names = [*_JSON_LIMITS_BYTES, *_VOCABULARY_NAMES]
        stats = {name: key for name in names if (key := _stat_key(folder / name))}
        stats |= {str(path): _stat_key(path) for pattern in _TEMPLATE_PATTERNS for path in folder.glob(pattern)}
        return _check_files(folder, tuple(sorted(stats.items())))
    except OSError as error:
        raise UnavailableError(f"The base {folder} cannot be read: {error.strerror or error}.") from error


def _stat_key(path: Path) -> tuple[int, ...]:
    """Return the values that change whenever a file does; an empty tuple for a missing file."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@lru_cache(maxsize=8)
def _check_files(folder: Path, _stats: tuple[tuple[str, tuple[int, ...]], ...]) -> Mapping[str, object]:
    """Check a base's files, once for each state of them, because a large vocabulary takes half a second."""
    for name in _VOCABULARY_NAMES:
        if (folder / name).exists():
            read_bytes(folder / name, LARGE_FILE_BYTES, UnavailableError)
    for pattern in _TEMPLATE_PATTERNS:
        for path in folder.glob(pattern):
            read_text(path, SMALL_FILE_BYTES, UnavailableError)
    config: dict[str, object] = {}
    for name, max_bytes in _JSON_LIMITS_BYTES.items():
        path = folder / name
        if not path.exists():
            continue
        content = read_json(path, max_bytes, UnavailableError)
        if not isinstance(content, dict) and name != "chat_template.json":
            raise UnavailableError(f"{path} is not a JSON object. Fix: replace it.")
        if name in (_CONFIG_NAME, "generation_config.json"):
            check_config_limits(content, str(path))
            check_no_remote_code(content, str(path))
            check_generation_config(content, str(path))
        elif name.startswith(("tokenizer", "special_tokens_map", "added_tokens")):
            _check_added_tokens(content, path)
        if name == _CONFIG_NAME:
            config = content
    check_other_declarations(config, folder)
    return config


def _check_added_tokens(content: dict[str, object], path: Path) -> None:
    """Raise UnavailableError for more added tokens than any base needs."""
    if path.name == "added_tokens.json":
        content = {"added_tokens": content}
    for key in ("added_tokens", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
        tokens = content.get(key)
        if isinstance(tokens, list | dict) and len(tokens) > _MAX_ADDED_TOKENS:
            raise UnavailableError(f"{path}: {key} has {len(tokens):,} tokens; the limit is {_MAX_ADDED_TOKENS:,}.")
