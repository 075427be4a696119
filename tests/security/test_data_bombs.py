"""Small data files that expand a lot, and special files: each ends in one message and little memory."""

import gzip
import json
import os
import resource
import time

import pyarrow as pa
import pytest
from pyarrow import parquet

from lora_chat.config.data import DataSection
from lora_chat.config.load import read_recipe
from lora_chat.data.encoding.chat_template import install_template
from lora_chat.data.parsing.rows import ReadingOptions, parse_chunk, read_chunks, read_dialogues
from lora_chat.data.reading import files, folders, size_limits
from lora_chat.data.reading.find_files import find_files
from lora_chat.data.reading.raw_row import RawRow
from lora_chat.data.reading.size_limits import MAX_BLANK_LINES, MAX_COLUMNS, MAX_ROW_BYTES
from lora_chat.data.sources import check_sources, find_sources, open_sources
from lora_chat.errors import DataError, RecipeError
from lora_chat.evaluation.questions import read_questions

pytestmark = pytest.mark.slow

ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
GOOD = json.dumps(ROW).encode() + b"\n"
BEGIN = b'{"messages": [{"role": "user", "content": "'
MORE = MAX_ROW_BYTES // (1 << 20) + 2
MIB = 1 << 20


class ManyKeys:
    """One piece that is made when it is written, because that takes as long as the collection of many tests."""

    def __iter__(self):
        yield b"{" + b",".join(b'"k%d":1' % n for n in range(3_000_000)) + b"}\n"


BOMBS = {
    "zeros behind a row": [GOOD, *[b"\0" * MIB] * MORE],
    "one long line": [BEGIN, *[b"a" * MIB] * MORE],
    "blanks alone": [GOOD, *[b" " * MIB] * MORE],
    "lines without end": [GOOD, *[b"\n" * MIB] * 3],
    "a list of one long text": [b"[", BEGIN, *[b"a" * MIB] * MORE],
    "a deep list": [b"[" * MIB],
    "deep objects": [GOOD, b'{"a":' * MIB, b"\n"],
    "an object of too many keys": ManyKeys(),
    "one cell of a table": [b'instruction,output\nx,"', *[b"a" * MIB] * MORE],
    "a record of many lines": [b'instruction,output\nx,"', *[(b"a" * 1023 + b"\n") * 1024] * MORE],
    "a table of too many columns": [b"instruction,output," + b",".join(b"c%d" % n for n in range(MAX_COLUMNS)) + b"\n"],
    "a table of blank lines": [b"instruction,output\n", *[b"\n" * MIB] * 3],
    "a number of too many digits": [GOOD, b'{"messages": ', b"9" * MIB, b"}\n"],
    "UTF-16": ["".join(GOOD.decode()).encode("utf-16")],
    "overlong UTF-8": [GOOD.replace(b"q", b"\xc0\xaf")],
    "half a pair": [GOOD.replace(b'"q"', b'"\\ud800"')],
    "gzip in gzip": [gzip.compress(GOOD)],
    "a zip": [b"PK\3\4" + b"\0" * 100],
}


def refused_within(seconds, mib, read, *words):
    """Assert that data is refused with one message, in little CPU time and memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(DataError) as caught:
        read()
    assert time.process_time() - started < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < mib * 1024
    message = str(caught.value)
    assert len(message) < 10_000
    assert all(word in message for word in words), message


def read_all(path, options=None):
    for chunk in read_chunks([path], options or ReadingOptions()):
        parse_chunk(chunk, options or ReadingOptions())


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_in_a_message(tmp_path, name):
    path = tmp_path / "data"
    with gzip.open(path, "wb", 1) as file:
        for piece in BOMBS[name]:
            file.write(piece)
    refused_within(30, 700, lambda: read_dialogues(path), str(path))


@pytest.mark.parametrize("name", ["zeros behind a row", "one long line", "lines without end"])
def test_plain_text_is_bounded_too(tmp_path, monkeypatch, name):
    for module in (files, size_limits):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", MIB)
    path = tmp_path / "book.txt"
    path.write_bytes(b"A book.\n" + b"".join(BOMBS[name][:3]) + b"\n" * MIB)
    options = ReadingOptions("text")
    faults = [row.fault for chunk in read_chunks([path], options) for row in chunk.rows if row.ends_file]
    assert len(faults) == 1
    assert "longer than 32 MiB" in faults[0]


def test_unpacking_far_more_than_is_stored_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(size_limits, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    monkeypatch.setattr(size_limits, "MAX_COMPRESSION_RATIO", 50)
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 200_000, 9))
    refused_within(30, 300, lambda: read_dialogues(path), "decompresses to more than")
    path.write_bytes(gzip.compress(GOOD * 5000, 9))
    assert len(read_dialogues(path)[0]) == 5000


def test_a_long_honest_row_and_blank_lines_are_read(tmp_path):
    path = tmp_path / "data.jsonl"
    long = json.dumps({"messages": [{"role": "user", "content": "q" * (8 << 20)}, ROW["messages"][1]]}).encode()
    path.write_bytes(GOOD + b"\n" * 1000 + long + b"\n" + GOOD)
    dialogues, tally = read_dialogues(path)
    assert [dialogue.line for dialogue in dialogues] == [1, 1002, 1003]
    assert (tally.lines, tally.accepted, tally.blank) == (1003, 3, 1000)
    assert MAX_BLANK_LINES > 1000


def _dictionary(value, rows):
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


def _table(column, rows):
    return pa.table({"instruction": column, "output": pa.array(["x"] * rows)})


def _nested(value, count):
    return pa.table({"messages": pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), _dictionary(value, count))})


TABLES = {
    "one value for many rows": lambda: _table(_dictionary("b" * MIB, 3000), 3000),
    "one large value": lambda: _table(pa.array(["a" * (MAX_ROW_BYTES + 1)]), 1),
    "one value inside a list": lambda: _nested("c" * MIB, 50_000),
    "a list of nothing": lambda: pa.table({"messages": pa.array([[None] * 20_000_000], pa.list_(pa.null()))}),
    "too many columns": lambda: pa.table({f"c{n}": [1] for n in range(MAX_COLUMNS + 1)}),
}


@pytest.mark.parametrize("stored", [True, False], ids=["with Arrow's schema", "without"])
@pytest.mark.parametrize("name", TABLES)
def test_a_bomb_of_parquet_ends_in_a_message(tmp_path, monkeypatch, name, stored):
    monkeypatch.setattr(size_limits, "ALWAYS_ALLOWED_BYTES", 1 << 26)
    monkeypatch.setattr(size_limits, "PARQUET_MEMORY_BYTES", 1 << 29)
    path = tmp_path / "data.parquet"
    parquet.write_table(TABLES[name](), path, compression="zstd", store_schema=stored)
    refused_within(30, 1000, lambda: read_dialogues(path), str(path))


def test_a_deep_schema_of_parquet_ends_in_a_message(tmp_path):
    kind = pa.int32()
    for _ in range(300):
        kind = pa.list_(kind)
    parquet.write_table(pa.table({"messages": pa.array([None], kind)}), tmp_path / "data.parquet")
    refused_within(30, 300, lambda: read_dialogues(tmp_path / "data.parquet"), "nested")


def test_categories_of_parquet_are_read_as_their_values(tmp_path):
    table = pa.table({"instruction": pa.array(["one", "two"] * 300).dictionary_encode(), "output": ["x"] * 600})
    parquet.write_table(table, tmp_path / "data.parquet")
    dialogues, _ = read_dialogues(tmp_path / "data.parquet")
    assert [dialogue.messages[0].content for dialogue in dialogues] == ["one", "two"] * 300


def _fifo(path):
    os.mkfifo(path)


def _holes(path):
    with path.open("wb") as file:
        file.write(GOOD)
        file.truncate(1 << 40)


ODD_FILES = {
    "a FIFO": _fifo,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a device of random bytes": lambda path: path.symlink_to("/dev/urandom"),
    "a device of nothing": lambda path: path.symlink_to("/dev/null"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a file of holes": _holes,
    "a folder of folders": lambda path: (path / "inner.jsonl").mkdir(parents=True),
}


@pytest.mark.parametrize("name", ODD_FILES)
@pytest.mark.parametrize("use", ["data", "questions", "template", "recipe"])
def test_special_file_does_not_block(tmp_path, name, use, tiny_tokenizer):
    if use == "recipe" and name in ("a FIFO", "a terminal"):
        pytest.skip("a shell may hand over a recipe in a pipe")
    path = tmp_path / "odd.jsonl"
    ODD_FILES[name](path)
    readers = {
        "data": lambda: read_dialogues(path),
        "questions": lambda: read_questions(str(path)),
        "template": lambda: install_template(tiny_tokenizer, str(path)),
        "recipe": lambda: read_recipe(path),
    }
    started = time.process_time()
    with pytest.raises(RecipeError if use == "recipe" else DataError):
        readers[use]()
    assert time.process_time() - started < 5


def test_a_folder_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_FILES", 20)
    for number in range(21):
        (tmp_path / f"{number}.jsonl").touch()
    for name in (tmp_path, tmp_path / "*.jsonl"):
        refused_within(10, 100, lambda name=name: find_files(str(name)), "more than 20 files")


@pytest.mark.parametrize("packed", [False, True])
def test_reading_stops_at_too_many_faulty_rows(tmp_path, cache_home, tiny_tokenizer, packed):
    path, raw = tmp_path / "rows", GOOD + b"x\n" * 3_000_000
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    section = DataSection(train=str(path), workers=1, skip_bad=50)
    started = time.process_time()
    for read in (
        lambda found: check_sources(found, DataSection(train="x", skip_bad=50), str),
        lambda found: open_sources(found, section, tiny_tokenizer, [0], None),
    ):
        with pytest.raises(DataError, match=r"At least 10,?\d{3} lines .* cannot be used \(data.skip_bad") as caught:
            read(find_sources(section.train_sources))
        assert f"{path}:2: is not valid JSON" in str(caught.value)
        assert "skip_bad=N" in str(caught.value)
    assert time.process_time() - started < 10


def test_millions_of_lines_of_prose_are_one_message(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(b"x\n" * 1_000_000)
    refused_within(5, 50, lambda: read_dialogues(path), f"{path}:1: is not valid JSON, but plain text")


def test_a_row_of_millions_of_values_is_refused(tmp_path):
    row = RawRow(1, raw=b"[" + b"{}," * 5_000_000 + b"{}]").parse()
    assert "more than 8,000,000 values" in (row.fault or "")
