"""The judgement log of a run: one record per line, appended and synced, and never rewritten.

A process that is killed while it writes can leave an unfinished last line. Readers leave it out, and the next writer
ends it with a line feed, so that its bytes stay and no later record is joined to it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lora_chat.errors import IntegrityError, explain_write_errors
from lora_chat.runs.judgement_record import RECORD_VERSION, JudgementRecord, decode_record, encode_record
from lora_chat.system.atomic_write import fsync_path
from lora_chat.system.bounded_files import read_bytes
from lora_chat.system.file_lock import acquire_lock
from lora_chat.system.regular_files import open_regular_file
from lora_chat.system.strict_json import parse_strict_json

MAX_FILE_BYTES, MAX_LINES = 1 << 25, 100_000
"""Largest size of a judgement log, in bytes and in lines; more than 1,000 votes with the longest notes fit."""
MAX_LINE_BYTES = 1 << 15
"""Largest size, in bytes, of a line; a note in escapes has at most 12 bytes per character."""
_LOCK_NAME = ".judgements.lock"
_FIX = "Free some space, and vote again: the vote was not saved."


@dataclass(frozen=True)
class JudgementLog:
    """The content of a judgement log."""

    records: tuple[JudgementRecord, ...]
    """Records of this version, in their order."""
    torn: bool = False
    """Whether the last line is unfinished, as after a crash."""
    newer: int = 0
    """Number of lines of a later version of the log."""
    damaged: int = 0
    """Number of other lines that are not records."""

    @property
    def ignored(self) -> str:
        """Return a sentence on the lines that are left out; empty if all are read."""
        parts = [
            *([f"{self.newer:,} of a later version of lora_chat"] if self.newer else []),
            *([f"{self.damaged:,} damaged"] if self.damaged else []),
            *(["an unfinished last one"] if self.torn else []),
        ]
        return f"Lines that are not counted: {', '.join(parts)}." if parts else ""


def read_judgements(path: Path) -> JudgementLog:
    """Read a judgement log; a missing file is an empty one. Raise IntegrityError for a file that is too large."""
    try:
        raw = read_bytes(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        return JudgementLog(())
    if raw.count(b"\n") > MAX_LINES:
        raise IntegrityError(f"{path} has more than {MAX_LINES:,} lines. Fix: move it away.")
    records: list[JudgementRecord] = []
    newer = damaged = 0
    torn = False
    lines = raw.split(b"\n")
    last = len(lines) - 1  # the text after the last line feed, which is empty in a whole file
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        record, version = _decode_line(line)
        if record is not None:
            records.append(record)
        elif version > RECORD_VERSION:
            newer += 1
        elif number == last:
            torn = True
        else:
            damaged += 1
    return JudgementLog(tuple(records), torn, newer, damaged)


def _decode_line(line: bytes) -> tuple[JudgementRecord | None, int]:
    """Return the record of a line, or None with the version that the line states (0 for none)."""
    if len(line) > MAX_LINE_BYTES:
        return None, 0
    try:
        value = parse_strict_json(line.decode("utf-8"))
    except ValueError:  # UnicodeDecodeError is one
        return None, 0
    version = value.get("version") if isinstance(value, dict) else None
    if type(version) is not int:
        return None, 0
    try:
        return (decode_record(value), version) if version == RECORD_VERSION else (None, version)
    except ValueError:
        return None, version


def append_judgement(path: Path, record: JudgementRecord) -> None:
    """Append a record and sync it to the disk; other writers wait.

    Raise DiskFullError, DiskError or UsageError if it cannot be written, and IntegrityError for a file that is a link,
    another special file, or full.
    """
    line = encode_record(record)
    if len(line) > MAX_LINE_BYTES:
        raise IntegrityError(f"A judgement has {len(line):,} bytes; at most {MAX_LINE_BYTES:,} are allowed.")
    with explain_write_errors(path, "a judgement", len(line), _FIX), _lock(path.parent):
        is_new = not path.exists()
        handle = open_regular_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            _append_line(handle, path, line)
        finally:
            os.close(handle)
        if is_new:
            fsync_path(path.parent)


def _append_line(handle: int, path: Path, line: bytes) -> None:
    """Write a line at the end of an open log, after a line feed if the last line has none."""
    size = os.fstat(handle).st_size
    if size + len(line) + 1 > MAX_FILE_BYTES:
        raise IntegrityError(f"{path} has {size:,} bytes, which is full. Fix: move it away and begin a new one.")
    if size and _read_last_byte(handle, size) != b"\n":
        line = b"\n" + line
    try:
        written = 0
        while written < len(line):
            written += os.write(handle, line[written:])
        os.fsync(handle)
    except BaseException:
        with suppress(OSError):  # the part of a line that was written is not a vote
            os.ftruncate(handle, size)
        raise


def _read_last_byte(handle: int, size: int) -> bytes:
    os.lseek(handle, size - 1, os.SEEK_SET)
    return os.read(handle, 1)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the judgement log of a run folder during the block, after other writers.

    The lock is a separate file, because some systems refuse to read a locked file.
    """
    handle = open_regular_file(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT)
    try:
        acquire_lock(handle, wait=True)
        yield
    finally:
        os.close(handle)
