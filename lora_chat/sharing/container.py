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
MEMBERS = (RECEIPT, CONFIG, WEIGHTS, CARD)
"""In this order; a signature may follow them."""
LARGEST = {RECEIPT: 2**20, CONFIG: 2**16, WEIGHTS: 2**31 - 2**23, CARD: 2**20, SIGNATURE: 2**17}
"""Bytes; with all of them the file is still one that needs no zip64."""
LARGEST_FILE = sum(LARGEST.values()) + 2**12

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION, _STORED, _UNIX = 20, 0, 3 << 8
_MIDNIGHT, _FIRST_DAY = 0, 0x21  # 1980-01-01, the first day that a zip knows
_READABLE = 0o100644 << 16


def pieces(members: Mapping[str, bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The file that holds these members, piece after piece: there is one such file and no other."""
    names = [*MEMBERS, *([SIGNATURE] if SIGNATURE in members else [])]
    offset, directory = 0, b""
    for name in names:
        body, raw = members[name], name.encode("ascii")
        facts = (_STORED, _MIDNIGHT, _FIRST_DAY, zlib.crc32(body), len(body), len(body), len(raw), 0)
        head = _LOCAL.pack(b"PK\3\4", _VERSION, 0, *facts) + raw
        central = _CENTRAL.pack(b"PK\1\2", _UNIX | _VERSION, _VERSION, 0, *facts, 0, 0, 0, _READABLE, offset)
        directory += central + raw
        offset += len(head) + len(body)
        yield head
        yield body
    yield directory
    yield _END.pack(b"PK\5\6", 0, 0, len(names), len(names), len(directory), offset, 0)


def unpack(data: bytes) -> dict[str, memoryview]:
    """The members of a parcel, which share its memory. Raises IntegrityError for any file that `pieces` would not make.

    Takes time and memory in proportion to the file's size, whatever stands in it.
    """
    view, members, place = memoryview(data), {}, 0
    for name in (*MEMBERS, SIGNATURE):
        if name == SIGNATURE and data[place : place + 4] == b"PK\1\2":
            break
        body = _body(data, place, name)
        members[name] = view[body]
        place = body.stop
    place = 0
    for number, piece in enumerate(pieces(members)):
        if view[place : place + len(piece)] != piece:
            where = list(members)[number // 2] if number < 2 * len(members) else "the directory at its end"
            raise IntegrityError(f"the container is damaged at {where} (byte {place} or behind it)")
        place += len(piece)
    if place != len(data):
        raise IntegrityError(f"{len(data) - place} bytes stand behind the container's end")
    return members


def _body(data: bytes, place: int, name: str) -> slice:
    """Where the member `name` lies whose header begins at `place`; everything else about it is compared later."""
    if len(data) < place + _LOCAL.size:
        raise IntegrityError(f"the container ends in front of {name} (byte {len(data)})")
    signature, *_, size, length, _ = _LOCAL.unpack_from(data, place)
    if signature != b"PK\3\4" or length != len(name):
        raise IntegrityError(f"the container has no {name} at byte {place}")
    if size > LARGEST[name]:
        raise IntegrityError(f"{name} claims {size} bytes; {LARGEST[name]} are allowed")
    begin = place + _LOCAL.size + length
    if begin + size > len(data):
        raise IntegrityError(f"{name} claims {size} bytes; the file ends before")
    return slice(begin, begin + size)
