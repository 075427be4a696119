"""The header of a safetensors file, checked before the library opens the file.

The format: eight bytes with the length of the header, the header as JSON, the tensors' bytes
(https://huggingface.co/docs/safetensors). The library checks that the tensors fill the rest without gaps.
"""

import os
from pathlib import Path
from typing import Any, TypeGuard

from lora_chat.errors import IntegrityError
from lora_chat.system.bounded_files import parse_bounded_json
from lora_chat.system.regular_files import open_regular_file

MAX_HEADER_BYTES = 1 << 24
"""Bytes; a shard with a thousand tensors has 100 kB."""
_MAX_TENSORS = 100_000
_MAX_DIMENSIONS = 8
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


def check_safetensors_header(path: Path) -> None:
    """Raise IntegrityError unless a file begins with a bounded header that fits its size; links are followed.

    Raises OSError for a file that is missing or cannot be read.
    """
    with os.fdopen(open_regular_file(path, follow=True), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise IntegrityError(f"{path} is no whole safetensors file: its header cannot be {length:,} bytes long")
        raw = file.read(length)
    try:
        check_raw_header(raw, size - 8 - length)
    except ValueError as error:
        raise IntegrityError(f"{path} has a damaged header: it {error}") from error


def check_raw_header(raw: bytes, size: int) -> None:
    """Raise ValueError unless bytes are a header, in which no name stands twice, of tensors within `size` bytes."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from error
    check_tensor_table(parse_bounded_json(text, strict=True), size)


def check_tensor_table(table: Any, size: int) -> None:
    """Raise ValueError unless a header describes tensors that lie within `size` bytes."""
    if not isinstance(table, dict) or len(table) > _MAX_TENSORS:
        raise ValueError(f"is no table of at most {_MAX_TENSORS:,} tensors")
    for name, entry in table.items():
        if name == "__metadata__":
            continue
        shape, place = (entry.get("shape"), entry.get("data_offsets")) if isinstance(entry, dict) else ((), ())
        if not isinstance(entry, dict) or entry.keys() - _ENTRY_KEYS or not isinstance(entry.get("dtype"), str):
            shape = None
        if not _is_size_list(shape, _MAX_DIMENSIONS) or not _is_size_list(place, 2) or len(place) < 2:
            raise ValueError(f"describes {name[:100]!a} in another way than safetensors does")
        if not place[0] <= place[1] <= size:
            raise ValueError(f"places {name[:100]!a} outside of the file, which is cut short")


def _is_size_list(value: Any, most: int) -> "TypeGuard[list[int]]":
    return isinstance(value, list) and len(value) <= most and all(type(one) is int and one >= 0 for one in value)
