"""The settings of a base that shape what it computes, read from its JSON files field by field."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from lora_chat.errors import IntegrityError
from lora_chat.system.bounded_files import MEDIUM_FILE_BYTES, read_bytes
from lora_chat.system.strict_json import is_nested_too_deeply

_MAX_VALUE_CHARACTERS = 200
"""Length limit of a value that is stored as it is; a longer one is stored as its digest."""
_MAX_FIELDS = 500
_DIGEST_PREFIX = "sha256:"
# Half a surrogate pair is no text; a digest must not be taken for the value that it stands for.
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
"""What a loaded tokenizer holds beside its backend; it is compared as it was loaded."""
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
        "_name_or_path": "names the place that the config was read from; only the choice of the tokenizer's class "
        "looks at it, and the loaded tokenizer is compared",
        "transformers_version": "names the program that wrote the file; only a repair of Mistral's tokenizer looks at "
        "it, and the loaded tokenizer is compared",
        "dtype": "is replaced by the dtype of the plan whenever weights are loaded",
        "torch_dtype": "is the older name of dtype",
        "use_cache": "decides whether keys and values are kept, not what they are; generation sets it itself",
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
        "is_local": "is replaced by what is true of the folder that is loaded",
        "local_files_only": "is replaced by the argument of the call that loads",
        "tokenizer_file": "is replaced by the tokenizer.json of the folder",
        "vocab_file": "is replaced by the vocabulary of the folder",
        "chat_template": "is compared by its own digest, as the template in force",
        "tokenizer_class": "is compared as the class that was loaded",
        "added_tokens_decoder": "is compared as the loaded tokenizer's added tokens",
        **dict.fromkeys(TOKENIZER_ATTRIBUTES, "is compared as the loaded tokenizer's attribute of that name"),
        **_SPECIAL_TOKEN_FIELDS,
    },
    "special_tokens_map.json": dict(_SPECIAL_TOKEN_FIELDS),
}
"""The fields that are not compared as they stand, file by file, each with the reason; every other field is."""


def read_compared_fields(folder: Path, name: str) -> dict[str, JsonValue] | None:
    """Return the fields of a JSON file that are not harmless, long values as digests; None if there is no file.

    Raises IntegrityError for a file that holds no object or is too large.
    """
    found = read_lenient_json_object(folder / name)
    if found is None:
        return None
    compared = {key: value for key, value in found.items() if key not in IGNORED_FIELDS[name]}
    if len(compared) > _MAX_FIELDS or not all(
        key.isprintable() and len(key) <= _MAX_VALUE_CHARACTERS // 2 for key in compared
    ):
        return {"all": _DIGEST_PREFIX + hashlib.sha256(canonical_json(compared).encode()).hexdigest()}
    return {key: value_or_digest(value) for key, value in sorted(compared.items())}


def read_lenient_json_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file as Transformers reads it; None if there is no file.

    Raises IntegrityError as `read_compared_fields` does.
    """
    try:
        raw = read_bytes(path, MEDIUM_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        # Some configs hold Infinity, and repeated keys are legal for Transformers: the last one counts.
        found = json.loads(raw.decode("utf-8"), parse_constant=lambda name: {"__float__": name})
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read: {str(error)[:200]}.") from error
    if not isinstance(found, dict) or is_nested_too_deeply(found):
        raise IntegrityError(f"{path} holds no JSON object, or one that is nested too deeply.")
    return found


def value_or_digest(value: JsonValue) -> JsonValue:
    """Return a value as it is, or its digest if it is long, holds a path of this machine, or cannot be written."""
    text = canonical_json(value)
    if len(text) <= _MAX_VALUE_CHARACTERS and not _MUST_BE_DIGESTED.search(text):
        return value
    return _DIGEST_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: JsonValue) -> str:
    """Return the one JSON text of a value; unlike `==`, it tells 1, 1.0 and true apart."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
