"""Kinds of files that are never read, recognised by their first bytes, each with one sentence that says the fix."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from lora_chat.data.reading.compression import find_compression

_JSON_LINES_FIX = "Fix: write the dialogues as JSON lines"
_UTF8_FIX = "Fix: save it as UTF-8, for example with iconv -f {0} -t UTF-8 FILE > NEW_FILE"


@dataclass(frozen=True)
class ForeignKind:
    """A kind of file that is never read; one entry of `FOREIGN_KINDS`."""

    description: str
    """Text after "FILE is", with the fix."""
    matches: Callable[[bytes], bool]
    """Whether the first bytes of a file, decompressed, are of this kind."""


def describe_foreign_file(head: bytes, *, is_compressed: bool = False) -> str | None:
    """Return the kind of a file and the fix if it is never read, otherwise None."""
    if is_compressed:
        inner = find_compression(head)
        if inner:
            return f"compressed twice, and contains a {inner.name} file. Fix: decompress it"
        if head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
            return "a compressed file of Parquet or Arrow. Fix: decompress it"
    return next((kind.description for kind in FOREIGN_KINDS if kind.matches(head)), None)


def _begins(*beginnings: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(beginnings)


def _matches(pattern: bytes) -> Callable[[bytes], bool]:
    return lambda head: re.match(pattern, head, re.DOTALL) is not None


FOREIGN_KINDS = (
    ForeignKind(
        "a git-lfs pointer, not the data. Fix: run git lfs pull in its repository, or download the file itself",
        _begins(b"version https://git-lfs", b"version https://hawser"),
    ),
    ForeignKind(f"UTF-32 text. {_UTF8_FIX.format('UTF-32')}", _begins(b"\xff\xfe\0\0", b"\0\0\xfe\xff")),
    ForeignKind(f"UTF-16 text. {_UTF8_FIX.format('UTF-16')}", _begins(b"\xff\xfe", b"\xfe\xff")),
    ForeignKind(f"UTF-32 text. {_UTF8_FIX.format('UTF-32LE')}", _matches(rb"(?:[^\0]\0\0\0){4}")),
    ForeignKind(f"UTF-32 text. {_UTF8_FIX.format('UTF-32BE')}", _matches(rb"(?:\0\0\0[^\0]){4}")),
    ForeignKind(f"UTF-16 text. {_UTF8_FIX.format('UTF-16LE')}", _matches(rb"(?:[^\0]\0){4}")),
    ForeignKind(f"UTF-16 text. {_UTF8_FIX.format('UTF-16BE')}", _matches(rb"(?:\0[^\0]){4}")),
    ForeignKind("an old Excel or Word file. Fix: save it as CSV (UTF-8)", _begins(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")),
    ForeignKind("a PDF file. Fix: convert it to text, and read that with data.format: text", _begins(b"%PDF-")),
    ForeignKind("a Rich Text file. Fix: save it as plain text (UTF-8)", _begins(b"{\\rtf")),
    ForeignKind(f"a SQLite database. {_JSON_LINES_FIX}", _begins(b"SQLite format 3\0")),
    ForeignKind(f"a NumPy file. {_JSON_LINES_FIX}", _begins(b"\x93NUMPY")),
    ForeignKind(f"an HDF5 file. {_JSON_LINES_FIX}", _begins(b"\x89HDF\r\n\x1a\n")),
    ForeignKind(f"a pickle, which is never loaded. {_JSON_LINES_FIX}", _matches(rb"\x80[\x02-\x05][\x95\]}cq(K-N]")),
    ForeignKind("a file of weights (safetensors), not data. Fix: name the data", _matches(rb".{6}\0\0\{\"")),
    ForeignKind("a file of weights (GGUF), not data. Fix: name the data", _matches(rb"GGUF[\x01-\x09]\0\0\0")),
    ForeignKind(f"an Avro file. {_JSON_LINES_FIX}", _begins(b"Obj\x01")),
    ForeignKind("an ORC file. Fix: save it as Parquet or CSV", _matches(rb"ORC[\x00-\x1f]")),
    ForeignKind("an old Feather file. Fix: save it as Parquet or CSV", _begins(b"FEA1")),
    ForeignKind("a tar archive. Fix: unpack it, and name the data files of it", lambda head: head[257:262] == b"ustar"),
    ForeignKind("a 7z archive. Fix: unpack it", _begins(b"7z\xbc\xaf\x27\x1c")),
    ForeignKind("a RAR archive. Fix: unpack it", _begins(b"Rar!\x1a\x07")),
    ForeignKind("an LZ4 file. Fix: decompress it", _begins(b"\x04\x22\x4d\x18")),
    ForeignKind("an image, sound or video. Fix: name a file of dialogues", _begins(
        b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"OggS", b"fLaC", b"II*\0", b"MM\0*"
    )),
    ForeignKind("an image, sound or video. Fix: name a file of dialogues",
        _matches(rb".{4}ftyp|RIFF.{4}(?:WAVE|WEBP|AVI )|ID3[\x02-\x04]\0")),
    ForeignKind("a program. Fix: name a file of dialogues", _begins(b"\x7fELF", b"MZ\x90\0")),
)  # fmt: skip
"""Every kind of file that is never read, the most specific first."""
