"""Exactly one file is the container of given members; every other file is refused."""

import io
import os
import random
import struct
import time
import tracemalloc
import zipfile

import pytest
from forging import raw_of

from lora_chat.errors import IntegrityError
from lora_chat.sharing.container import CONFIG, MAX_MEMBER_BYTES, REQUIRED_MEMBERS, SIGNATURE, unpack_members

FUZZ = int(os.environ.get("LORA_CHAT_FUZZ", "3000"))


def test_unpacks_packed_members_as_zip_programs_do(members):
    raw = raw_of(members)
    assert {name: bytes(body) for name, body in unpack_members(raw).items()} == members
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == list(REQUIRED_MEMBERS)
        assert archive.read(CONFIG) == members[CONFIG]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_unpacks_a_signature(members):
    signed = {**members, SIGNATURE: b"signed"}
    assert bytes(unpack_members(raw_of(signed))[SIGNATURE]) == b"signed"


def test_rejects_a_change_of_any_bit(members):
    raw = raw_of(members)
    for place in range(len(raw)):
        for bit in range(8) if place % 16 == 0 else (place % 8,):
            changed = bytearray(raw)
            changed[place] ^= 1 << bit
            with pytest.raises(IntegrityError):
                unpack_members(bytes(changed))


def test_rejects_a_shorter_or_longer_file(members):
    raw = raw_of(members)
    for end in range(len(raw)):
        with pytest.raises(IntegrityError):
            unpack_members(raw[:end])
    for more in (b"\0", b"PK\5\6" + bytes(18), raw):
        with pytest.raises(IntegrityError):
            unpack_members(raw + more)
        with pytest.raises(IntegrityError):
            unpack_members(more + raw)


def write_zip(members, **how):
    """Return a zip of the same members as another program writes it."""
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w", how.get("method", zipfile.ZIP_STORED)) as archive:
        for name in how.get("names", REQUIRED_MEMBERS):
            info = zipfile.ZipInfo(how.get("prefix", "") + name, how.get("date", (1980, 1, 1, 0, 0, 0)))
            info.compress_type = how.get("method", zipfile.ZIP_STORED)
            info.external_attr = how.get("mode", 0o100644) << 16
            info.extra = how.get("extra", b"")
            archive.writestr(info, members.get(name, b"x"))
        archive.comment = how.get("comment", b"")
    return room.getvalue()


def test_plain_stored_zip_is_the_same_file(members):
    assert write_zip(members) == raw_of(members)


@pytest.mark.parametrize(
    "how",
    [
        {"method": zipfile.ZIP_DEFLATED},
        {"method": zipfile.ZIP_LZMA},
        {"names": REQUIRED_MEMBERS[::-1]},
        {"names": REQUIRED_MEMBERS[:3]},
        {"names": (*REQUIRED_MEMBERS, REQUIRED_MEMBERS[1])},
        {"names": (REQUIRED_MEMBERS[0], *REQUIRED_MEMBERS)},
        {"names": (*REQUIRED_MEMBERS, "adapter_model.bin")},
        {"names": (*REQUIRED_MEMBERS, "training_args.bin")},
        {"names": (*REQUIRED_MEMBERS, SIGNATURE, "x")},
        {"prefix": "../"},
        {"prefix": "/"},
        {"prefix": "a/"},
        {"date": (2026, 1, 1, 0, 0, 0)},
        {"mode": 0o120777},
        {"mode": 0o100755},
        {"extra": struct.pack("<HHQ", 1, 8, 1)},
        {"comment": b"hello"},
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_rejects_every_other_zip(members, how):
    with pytest.raises(IntegrityError):
        unpack_members(write_zip(members, **how))


def test_false_sizes_cost_no_memory(members):
    raw = raw_of(members)
    tracemalloc.start()
    started = time.process_time()
    for size in (0, 1, MAX_MEMBER_BYTES[REQUIRED_MEMBERS[0]] + 1, 2**31, 2**32 - 1):
        with pytest.raises(IntegrityError):
            unpack_members(raw[:18] + struct.pack("<II", size, size) + raw[26:])
    for empty in (b"", b"PK", b"PK\3\4", bytes(100), b"PK\5\6" + bytes(18), os.urandom(1000)):
        with pytest.raises(IntegrityError):
            unpack_members(empty)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert time.process_time() - started < 5


def test_fuzzed_files_are_refused_or_unchanged(members):
    """Set LORA_CHAT_FUZZ=1000000 for a long run."""
    raw, chance = raw_of(members), random.Random(os.environ.get("LORA_CHAT_SEED", "11"))
    for _ in range(FUZZ):
        changed = bytearray(raw)
        for _ in range(chance.randint(1, 4)):
            place, length = chance.randrange(len(changed) + 1), chance.choice((0, 1, 2, 4, 30, 200))
            kind = chance.randrange(4)
            if kind == 0:
                changed[place : place + length] = chance.randbytes(length)
            elif kind == 1:
                del changed[place : place + length]
            elif kind == 2:
                changed[place:place] = chance.randbytes(length)
            else:
                begin = chance.randrange(len(raw))
                changed[place : place + length] = raw[begin : begin + length]
        try:
            found = unpack_members(bytes(changed))
        except IntegrityError:
            continue
        assert bytes(changed) == raw
        assert {name: bytes(body) for name, body in found.items()} == members
