"""The parcel's container: a zip of a few stored members, every byte of which follows from what they hold.

It is written and compared here byte by byte, not with `zipfile`: what a later version of a library writes otherwise
would make old parcels unreadable, and a general reader accepts a thousand other files (comments, gaps, duplicates,
paths, compression) that nobody needs. The layout is that of PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.7 to 4.3.16.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping

from lora_chat.errors import IntegrityError

RECEIPT, CONFIG, WEIGHTS, CARD = "receipt.json", "adapter_config.json", "adapter_model.safetensors", "README.md"
SIGNATURE = "model.sig"
REQUIRED_MEMBERS = (RECEIPT, CONFIG, WEIGHTS, CARD)
"""In this order; a signature may follow them."""
MAX_MEMBER_BYTES = {RECEIPT: 2**20, CONFIG: 2**16, WEIGHTS: 2**31 - 2**23, CARD: 2**20, SIGNATURE: 2**17}
"""Bytes; with all of them the file is still one that needs no zip64."""
MAX_PARCEL_BYTES = sum(MAX_MEMBER_BYTES.values()) + 2**12

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END_RECORD = struct.Struct("<4s4H2IH")
_VERSION, _STORED, _UNIX = 20, 0, 3 << 8
_MIDNIGHT, _FIRST_DAY = 0, 0x21  # 1980-01-01, the first day that a zip knows
_FILE_ATTRIBUTES = 0o100644 << 16


def pack_members(members: Mapping[str, bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The file that holds these members, piece after piece: there is one such file and no other."""
    names = [*REQUIRED_MEMBERS, *([SIGNATURE] if SIGNATURE in members else [])]
    offset, directory = 0, b""
    for name in names:
        body, raw = members[name], name.encode("ascii")
        facts = (_STORED, _MIDNIGHT, _FIRST_DAY, zlib.crc32(body), len(body), len(body), len(raw), 0)
        head = _LOCAL_HEADER.pack(b"PK\3\4", _VERSION, 0, *facts) + raw
        central = _CENTRAL_HEADER.pack(
            b"PK\1\2", _UNIX | _VERSION, _VERSION, 0, *facts, 0, 0, 0, _FILE_ATTRIBUTES, offset
        )
        directory += central + raw
        offset += len(head) + len(body)
        yield head
        yield body
    yield directory
    yield _END_RECORD.pack(b"PK\5\6", 0, 0, len(names), len(names), len(directory), offset, 0)


def unpack_members(data: bytes) -> dict[str, memoryview]:
    """The members of a parcel, which share its memory. Raises IntegrityError for any file that `pack_members` would
    not make.

    Takes time and memory in proportion to the file's size, whatever stands in it.
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
            raise IntegrityError(f"the container is damaged at {where} (byte {offset} or behind it)")
        offset += len(piece)
    if offset != len(data):
        raise IntegrityError(f"{len(data) - offset} bytes stand behind the container's end")
    return members


def _member_slice(data: bytes, offset: int, name: str) -> slice:
    """Where the member `name` lies whose header begins at `offset`; everything else about it is compared later."""
    if len(data) < offset + _LOCAL_HEADER.size:
        raise IntegrityError(f"the container ends in front of {name} (byte {len(data)})")
    signature, *_, size, length, _ = _LOCAL_HEADER.unpack_from(data, offset)
    if signature != b"PK\3\4" or length != len(name):
        raise IntegrityError(f"the container has no {name} at byte {offset}")
    if size > MAX_MEMBER_BYTES[name]:
        raise IntegrityError(f"{name} claims {size} bytes; {MAX_MEMBER_BYTES[name]} are allowed")
    start = offset + _LOCAL_HEADER.size + length
    if start + size > len(data):
        raise IntegrityError(f"{name} claims {size} bytes; the file ends before")
    return slice(start, start + size)
