"""Check of the header of a safetensors file before the library opens it.

The file consists of eight bytes with the length of the header, the header as JSON, and the bytes of the tensors
(https://huggingface.co/docs/safetensors). The library itself checks that the tensors fill the file without gaps.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from lora_chat.errors import IntegrityError
from lora_chat.system.bounded_files import parse_bounded_json
from lora_chat.system.regular_files import open_regular_file

MAX_HEADER_BYTES = 1 << 24
"""Largest header, in bytes; a shard with a thousand tensors has 100 kB."""
_MAX_TENSORS = 100_000
_MAX_DIMENSIONS = 8
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorHeader:
    """Description of a tensor in a file."""

    dtype: str
    """Name of the dtype in safetensors, such as BF16."""
    shape: tuple[int, ...]


def check_safetensors_header(path: Path) -> None:
    """Raise IntegrityError unless a file begins with a valid header that fits its size; links are followed.

    Raise OSError for a file that is missing or cannot be read.
    """
    read_tensor_headers(path)


def read_tensor_headers(path: Path) -> dict[str, TensorHeader]:
    """Return dtype and shape of every tensor by its name; links are followed.

    Raise IntegrityError unless the file begins with a valid header that fits its size, OSError for a file that is
    missing or cannot be read.
    """
    with os.fdopen(open_regular_file(path, follow=True), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise IntegrityError(f"{path} is not a complete safetensors file: its header cannot have {length:,} bytes")
        raw = file.read(length)
    try:
        table = check_raw_header(raw, size - 8 - length)
    except ValueError as error:
        raise IntegrityError(f"{path} has a damaged header: it {error}") from error
    entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
    return {name: TensorHeader(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def check_raw_header(raw: bytes, size: int) -> dict[str, Any]:
    """Return a parsed header. Raise ValueError for repeated names or tensors that do not fit into `size` bytes."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from error
    table: dict[str, Any] = parse_bounded_json(text, strict=True)
    check_tensor_table(table, size)
    return table


def check_tensor_table(table: object, size: int) -> None:
    """Raise ValueError unless the tensors of a parsed header fit into `size` bytes."""
    if not isinstance(table, dict) or len(table) > _MAX_TENSORS:
        raise ValueError(f"is not a table of at most {_MAX_TENSORS:,} tensors")
    for name, entry in table.items():
        if name == "__metadata__":
            continue
        shape, offsets = (entry.get("shape"), entry.get("data_offsets")) if isinstance(entry, dict) else ((), ())
        if not isinstance(entry, dict) or entry.keys() - _ENTRY_KEYS or not isinstance(entry.get("dtype"), str):
            shape = None
        if not _is_size_list(shape, _MAX_DIMENSIONS) or not _is_size_list(offsets, 2) or len(offsets) < 2:
            raise ValueError(f"describes {name[:100]!a} in a way that is not valid in safetensors")
        if not offsets[0] <= offsets[1] <= size:
            raise ValueError(f"puts {name[:100]!a} beyond the end of the file, which is truncated")


def _is_size_list(value: object, max_length: int) -> "TypeGuard[list[int]]":
    return isinstance(value, list) and len(value) <= max_length and all(type(n) is int and n >= 0 for n in value)
