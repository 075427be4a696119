"""The fields of a base's JSON files that its identity compares."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from lora_chat.errors import IntegrityError
from lora_chat.system.bounded_files import MEDIUM_FILE_BYTES, read_bytes
from lora_chat.system.strict_json import is_nested_too_deeply

_MAX_VALUE_CHARACTERS = 200
"""Length limit of a stored value, in characters; a longer value is replaced by its digest."""
_MAX_FIELDS = 500
_DIGEST_PREFIX = "sha256:"
# Values that must be digested: half surrogate pairs, text that looks like a digest, and paths of this machine.
_MUST_BE_DIGESTED = re.compile(r'\\ud|"sha256:|"(/|~|\.\.?/|\\\\|[A-Za-z]:[/\\])')

TOKENIZER_ATTRIBUTES = (
    "add_bos_token",
    "add_eos_token",
    "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    "model_input_names",
    "model_max_length",
    "padding_side",
    "split_special_tokens",
    "truncation_side",
)
"""Attributes of a loaded tokenizer beside its backend, compared as they were loaded."""
_SPECIAL_TOKEN_FIELDS = dict.fromkeys(
    (
        *(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")),
        "additional_special_tokens",
        "extra_special_tokens",
    ),
    "is compared as the loaded tokenizer's special tokens",
)

IGNORED_FIELDS: Mapping[str, Mapping[str, str]] = {
    "config.json": {
        "_name_or_path": "names the folder that the config was read from; only the choice of the tokenizer's class "
        "reads it, and the loaded tokenizer is compared",
        "transformers_version": "names the program that wrote the file; only a repair of Mistral's tokenizer reads it, "
        "and the loaded tokenizer is compared",
        "dtype": "is replaced by the dtype of the plan whenever weights are loaded",
        "torch_dtype": "is the older name of dtype",
        "use_cache": "decides whether keys and values are cached, not their values; generation sets it",
    },
    "generation_config.json": {
        "transformers_version": "names the program that wrote the file; nothing reads it",
    },
    "tokenizer.json": {
        "truncation": "is switched off when the tokenizer is loaded and by every call",
        "padding": "is switched off when the tokenizer is loaded and by every call; the pad token that it names is "
        "compared with the special tokens",
    },
    "tokenizer_config.json": {
        "name_or_path": "is replaced by the folder that is loaded",
        "is_local": "is replaced by the loader",
        "local_files_only": "is replaced by the argument of the call that loads",
        "tokenizer_file": "is replaced by the tokenizer.json of the folder",
        "vocab_file": "is replaced by the vocabulary of the folder",
        "chat_template": "is compared by the digest of the installed template",
        "tokenizer_class": "is compared as the class that was loaded",
        "added_tokens_decoder": "is compared as the loaded tokenizer's added tokens",
        **dict.fromkeys(TOKENIZER_ATTRIBUTES, "is compared as the loaded tokenizer's attribute of that name"),
        **_SPECIAL_TOKEN_FIELDS,
    },
    "special_tokens_map.json": dict(_SPECIAL_TOKEN_FIELDS),
}
"""Fields that are not compared as written, by file, each with the reason. Every other field is compared."""


def read_compared_fields(folder: Path, name: str) -> dict[str, JsonValue] | None:
    """Return the compared fields of a JSON file, with digests for long values; None if the file is missing.

    Raises IntegrityError for a file that is not an object or is too large.
    """
    content = read_lenient_json_object(folder / name)
    if content is None:
        return None
    compared = {key: value for key, value in content.items() if key not in IGNORED_FIELDS[name]}
    if len(compared) > _MAX_FIELDS or not all(
        key.isprintable() and len(key) <= _MAX_VALUE_CHARACTERS // 2 for key in compared
    ):
        return {"all": _DIGEST_PREFIX + hashlib.sha256(canonical_json(compared).encode()).hexdigest()}
    return {key: value_or_digest(value) for key, value in sorted(compared.items())}


def read_lenient_json_object(path: Path) -> dict[str, JsonValue] | None:
    """Return the object in a JSON file as Transformers reads it; None if the file is missing.

    Raises IntegrityError as `read_compared_fields` does.
    """
    try:
        raw = read_bytes(path, MEDIUM_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        # Some configs contain Infinity, and Transformers accepts repeated keys, of which the last one counts.
        content = json.loads(raw.decode("utf-8"), parse_constant=lambda name: {"__float__": name})
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read: {str(error)[:200]}.") from error
    if not isinstance(content, dict) or is_nested_too_deeply(content):
        raise IntegrityError(f"{path} is not a JSON object, or is nested too deeply.")
    return content


def value_or_digest(value: JsonValue) -> JsonValue:
    """Return a value, or its digest if it is long, contains a path of this machine, or cannot be written."""
    text = canonical_json(value)
    if len(text) <= _MAX_VALUE_CHARACTERS and not _MUST_BE_DIGESTED.search(text):
        return value
    return _DIGEST_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: JsonValue) -> str:
    """Return the canonical JSON text of a value, which differs for 1, 1.0 and true, unlike `==`."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
