"""Pack and unpack the container of a parcel: a zip of stored members, in which the members decide every byte.

The container is written and compared byte by byte here, not with `zipfile`, for two reasons. A later version of a
library could write other bytes, which would make old parcels unreadable. A general reader also accepts comments, gaps,
duplicates, paths and compression, which a parcel never has. The layout follows PKWARE's APPNOTE.TXT 6.3.10, sections
4.3.7 to 4.3.16.
"""

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_chat.errors import IntegrityError
from lora_chat.system.regular_files import open_regular_file

RECEIPT, CONFIG, WEIGHTS, CARD = "receipt.json", "adapter_config.json", "adapter_model.safetensors", "README.md"
SIGNATURE = "model.sig"
PARCEL_SUFFIX = ".lorachat"
REQUIRED_MEMBERS = (RECEIPT, CONFIG, WEIGHTS, CARD)
"""Members that every parcel has, in this order; a signature may follow."""
MAX_MEMBER_BYTES = {RECEIPT: 2**20, CONFIG: 2**16, WEIGHTS: 2**31 - 2**23, CARD: 2**20, SIGNATURE: 2**17}
"""Largest size of each member, in bytes. A file with all of them at this size still needs no zip64."""
MAX_PARCEL_BYTES = sum(MAX_MEMBER_BYTES.values()) + 2**12

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END_RECORD = struct.Struct("<4s4H2IH")
_VERSION, _STORED, _UNIX = 20, 0, 3 << 8
_MIDNIGHT, _FIRST_DAY = 0, 0x21  # 1980-01-01, the first day that a zip knows
_FILE_ATTRIBUTES = 0o100644 << 16


def pack_members(members: Mapping[str, bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Yield the pieces of the one file that contains these members."""
    names = [*REQUIRED_MEMBERS, *([SIGNATURE] if SIGNATURE in members else [])]
    offset, directory = 0, b""
    for name in names:
        body, raw = members[name], name.encode("ascii")
        fields = (_STORED, _MIDNIGHT, _FIRST_DAY, zlib.crc32(body), len(body), len(body), len(raw), 0)
        head = _LOCAL_HEADER.pack(b"PK\3\4", _VERSION, 0, *fields) + raw
        central = _CENTRAL_HEADER.pack(
            b"PK\1\2", _UNIX | _VERSION, _VERSION, 0, *fields, 0, 0, 0, _FILE_ATTRIBUTES, offset
        )
        directory += central + raw
        offset += len(head) + len(body)
        yield head
        yield body
    yield directory
    yield _END_RECORD.pack(b"PK\5\6", 0, 0, len(names), len(names), len(directory), offset, 0)


def unpack_members(data: bytes) -> dict[str, memoryview]:
    """Return the members of a parcel as views of its memory.

    Raises IntegrityError for any file that `pack_members` would not write. Time and memory are proportional to the
    size of the file, whatever its content.
    """
    view, members, offset = memoryview(data), {}, 0
    for name in (*REQUIRED_MEMBERS, SIGNATURE):
        if name == SIGNATURE and data[offset : offset + 4] == b"PK\1\2":
            break
        body = _member_slice(data, offset, name)
        members[name] = view[body]
        offset = body.stop
    offset = 0
    for number, piece in enumerate(pack_members(members)):
        if view[offset : offset + len(piece)] != piece:
            where = list(members)[number // 2] if number < 2 * len(members) else "the directory at its end"
            raise IntegrityError(f"the container is damaged at {where} (at or after byte {offset})")
        offset += len(piece)
    if offset != len(data):
        raise IntegrityError(f"{len(data) - offset} bytes follow the end of the container")
    return members


def read_first_member(path: Path) -> bytes:
    """Return the receipt of a parcel without a check of its content. Raise IntegrityError or OSError."""
    with os.fdopen(open_regular_file(path), "rb") as file:
        data = file.read(_LOCAL_HEADER.size + len(RECEIPT) + MAX_MEMBER_BYTES[RECEIPT])
    return data[_member_slice(data, 0, RECEIPT)]


def _member_slice(data: bytes, offset: int, name: str) -> slice:
    """Return the slice of the member `name` whose header begins at `offset`.

    The caller compares all other fields of the header.
    """
    if len(data) < offset + _LOCAL_HEADER.size:
        raise IntegrityError(f"the container ends before {name} (byte {len(data)})")
    signature, *_, size, length, _ = _LOCAL_HEADER.unpack_from(data, offset)
    if signature != b"PK\3\4" or length != len(name):
        raise IntegrityError(f"the container has no {name} at byte {offset}")
    if size > MAX_MEMBER_BYTES[name]:
        raise IntegrityError(f"{name} claims {size} bytes; {MAX_MEMBER_BYTES[name]} are allowed")
    start = offset + _LOCAL_HEADER.size + length
    if start + size > len(data):
        raise IntegrityError(f"{name} claims {size} bytes; the file ends before that")
    return slice(start, start + size)
