"""Readers of strangers' text and JSON files with limits on size, depth and number of values."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_chat.errors import IntegrityError, LoraChatError
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.strict_json import MAX_DEPTH, is_nested_too_deeply, parse_strict_json

SMALL_FILE_BYTES, MEDIUM_FILE_BYTES, LARGE_FILE_BYTES = 1 << 20, 16 << 20, 100_000_000
"""Largest sizes, in bytes, of files with settings, with lists of names, and with vocabularies."""
MAX_LOG_BYTES = 1 << 28
"""Largest size, in bytes, of files with one line per step or dialogue."""
_MAX_VALUES = 8_000_000
"""Largest number of commas and brackets; a vocabulary of 256,000 tokens and 500,000 merges has three million."""

ErrorClass = type[LoraChatError]


def read_bytes(path: Path, max_bytes: int, error: ErrorClass = IntegrityError) -> bytes:
    """Read a regular file of at most `max_bytes` bytes; links are followed.

    Raise `error` for any other file, FileNotFoundError for a missing one.
    """
    try:
        handle = open_regular_file(path, follow=True)
    except IntegrityError as refusal:
        raise error(str(refusal)) from refusal
    except FileNotFoundError:
        raise
    except OSError as failure:
        raise error(f"{path} cannot be read ({failure.strerror or failure}). Check its permissions.") from failure
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        raw = file.read(max_bytes + 1) if size <= max_bytes else b""  # it may grow while it is read
    if size > max_bytes or len(raw) > max_bytes:
        raise error(f"{path} has more than {max_bytes:,} bytes, more than such a file needs. Fix: replace it.")
    return raw


def read_text(path: Path, max_bytes: int = SMALL_FILE_BYTES, error: ErrorClass = IntegrityError) -> str:
    """Read a UTF-8 text file. Raise `error` or FileNotFoundError."""
    try:
        return read_bytes(path, max_bytes, error).decode("utf-8")
    except UnicodeDecodeError as failure:
        raise error(f"{path} is not UTF-8 text (byte {failure.start}). Fix: replace it.") from failure


def read_json(
    path: Path, max_bytes: int = SMALL_FILE_BYTES, error: ErrorClass = IntegrityError, *, strict: bool = False
) -> Any:
    """Read a JSON file. Raise `error` or FileNotFoundError.

    `strict` also refuses repeated keys, NaN and Infinity.
    """
    text = read_text(path, max_bytes, error)
    try:
        return parse_bounded_json(text, strict=strict)
    except ValueError as failure:
        raise error(f"{path} {failure}. Fix: replace it.") from failure


def read_json_object(
    path: Path, max_bytes: int = SMALL_FILE_BYTES, error: ErrorClass = IntegrityError, *, strict: bool = False
) -> Any:
    """Read a JSON file like `read_json`. Raise `error` unless it contains an object."""
    value = read_json(path, max_bytes, error, strict=strict)
    if not isinstance(value, dict):
        raise error(f"{path} does not contain a JSON object. Fix: replace it.")
    return value


def read_json_lines(path: Path, max_bytes: int) -> Iterator[Any]:
    """Yield the JSON value of each line. Raise IntegrityError or FileNotFoundError."""
    for number, line in enumerate(read_text(path, max_bytes).splitlines(), 1):
        try:
            yield parse_bounded_json(line)
        except ValueError as failure:
            raise IntegrityError(f"{path}:{number} {failure}. The file is damaged.") from failure


def parse_bounded_json(text: str, *, strict: bool = False) -> Any:
    """Parse JSON with Python's rules. Raise ValueError for wrong syntax, too much depth or too many values.

    `strict` also refuses repeated keys, NaN and Infinity.
    """
    brackets = text.count("[") + text.count("{")
    if brackets + text.count(",") > _MAX_VALUES:
        raise ValueError(f"has more than {_MAX_VALUES:,} values")
    if strict:
        return parse_strict_json(text)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if brackets > MAX_DEPTH and is_nested_too_deeply(value):
        raise ValueError("is nested too deeply")
    return value
