"""Reading of the JSON files of this package: word lists, and the formats of keys and numbers."""

import json
from importlib.resources import files
from typing import TypeVar

from pydantic import TypeAdapter

from lora_chat.system.strict_json import parse_strict_json

T = TypeVar("T")


def load_data_file(folder: str, name: str, content_type: TypeAdapter[T]) -> T:
    """Return the validated content of a file in a folder of this package.

    Raises ValueError for invalid JSON, values of the wrong type, and lists with repeated entries.
    """
    text = files("lora_chat.audit").joinpath(folder, name).read_text(encoding="utf-8")
    _check_repeated_entries(parse_strict_json(text), name)
    return content_type.validate_json(text, strict=True)


def _check_repeated_entries(value: object, name: str) -> None:
    """Raise ValueError if a list contains an entry twice, at any depth."""
    if isinstance(value, list):
        entries = [json.dumps(entry, sort_keys=True) for entry in value]
        repeated = next((entry for entry in entries if entries.count(entry) > 1), None)
        if repeated is not None:
            raise ValueError(f"{name}: the entry {repeated} is repeated")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_repeated_entries(inner, name)
