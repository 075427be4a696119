"""Every kind of file: read, or refused with one sentence that names the kind and the fix."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pyarrow as pa
import pytest

from lora_chat.config.data import ColumnsSection
from lora_chat.data.parsing.column_guess import propose_columns
from lora_chat.data.parsing.rows import ReadingOptions, read_dialogues
from lora_chat.data.reading import size_limits
from lora_chat.errors import DataError
from lora_chat.system.strict_yaml import compose_strict


def row(number):
    return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"ä{number}"}]}


ROWS = [row(number) for number in range(5)]
LINES = "".join(json.dumps(one) + "\n" for one in ROWS).encode()
PAIRS = [{"question": f"q{n}", "answer": f"1,{n}"} for n in range(3)]
COLUMNS = ReadingOptions(columns={"user": "question", "assistant": "answer"})


def archive(*members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return out.getvalue()


def zstandard(content):
    return pa.compress(content, codec="zstd", asbytes=True)


def zstandard_stream(content):
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


def arrow(rows, *, is_stream=True, size=2):
    table = pa.Table.from_pylist(rows)
    out = io.BytesIO()
    with (pa.ipc.new_stream if is_stream else pa.ipc.new_file)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=size)
    return out.getvalue()


def tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(LINES)
        file.addfile(info, io.BytesIO(LINES))
    return out.getvalue()


@pytest.fixture
def read(tmp_path):
    def read_content(content, options=None, **more):
        path = tmp_path / "data"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_dialogues(path, options=options, **more)

    return read_content


READ = {
    "bzip2": bz2.compress(LINES),
    "two bzip2 streams": bz2.compress(LINES[:300]) + bz2.compress(LINES[300:]),
    "xz": lzma.compress(LINES),
    "zstandard": zstandard_stream(LINES),
    "zip": archive(("chats.jsonl", LINES)),
    "zip of a folder of macOS": archive(("a/chats.jsonl", LINES), ("__MACOSX/a/._chats.jsonl", b"x")),
    "indented objects": "\n".join(json.dumps(one, indent=2) for one in ROWS),
    "objects with commas": ",\n".join(json.dumps(one, indent=1) for one in ROWS),
    "objects without line feeds": "".join(json.dumps(one) for one in ROWS),
    "a list under a key": json.dumps({"data": ROWS}),
    "a list under a key, indented": json.dumps({"version": "1.1", "meta": {"n": [1]}, "rows": ROWS}, indent=2),
    "the split train": json.dumps({"test": ROWS[:1], "train": ROWS}),
    "a list under messages": json.dumps({"messages": ROWS}),
    "arrow stream": arrow(ROWS),
    "arrow file": arrow(ROWS, is_stream=False),
}


@pytest.mark.parametrize("name", READ)
def test_reads_the_same_dialogues_from_every_kind_of_file(read, name):
    dialogues, counts = read(READ[name])
    assert [dialogue.as_dicts for dialogue in dialogues] == [one["messages"] for one in ROWS]
    assert counts.refused == 0
    assert bool(counts.notes) == ("key" in name or name in ("the split train", "a list under messages"))


TABLES = {
    "commas": 'question,answer\nq0,"1,0"\nq1,"1,1"\nq2,"1,2"\n',
    "semicolons and a byte order mark": "\ufeffquestion;answer\r\nq0;1,0\r\nq1;1,1\r\nq2;1,2\r\n",
    "tabs": "question\tanswer\nq0\t1,0\nq1\t1,1\nq2\t1,2",
    "bars": "question | answer\nq0|1,0\nq1|1,1\nq2|1,2\n",
    "the separator line of Excel": "sep=;\r\nquestion;answer\r\nq0;1,0\r\nq1;1,1\r\nq2;1,2\r\n",
    "empty columns at the end": "question;answer;;\r\nq0;1,0;;\r\nq1;1,1;;\r\nq2;1,2;;\r\n",
    "a line break in the header": '"id\nof row";question;answer\n1;q0;1,0\n2;q1;1,1\n3;q2;1,2\n',
    "json": json.dumps({"rows": PAIRS}),
    "arrow": arrow(PAIRS),
}


@pytest.mark.parametrize("name", TABLES)
def test_reads_and_proposes_the_columns_of_any_table(read, name):
    dialogues, _ = read(TABLES[name], COLUMNS)
    expected = [(f"q{n}", f"1,{n}") for n in range(3)]
    assert [(d.messages[0].content, d.messages[1].content) for d in dialogues] == expected
    with pytest.raises(DataError) as error:
        read(TABLES[name])
    assert "--set 'data.columns={user: question, assistant: answer}'" in str(error.value)
    assert str(error.value).count("\n") <= 1


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["id", "Questions", "Answers"], ("Questions", "Answers")),
        (["Q", "A"], ("Q", "A")),
        (["zh", "en"], ("zh", "en")),
        (["prompt", "chosen", "rejected"], None),
        (["prompt", "response", "answer"], ("prompt", "response")),
        (["no", "q", "a b"], None),
        (["input text", "output"], None),
    ],
)
def test_guesses_only_clear_columns(names, pair):
    proposal = propose_columns(names)
    assert all(name in proposal for name in names)
    setting = proposal.partition("data.columns=")[2].rstrip("'")
    value = {key.value: node.value for key, node in compose_strict(setting).value}
    assert ColumnsSection(**value)
    assert (value["user"], value["assistant"]) == (pair or ("COLUMN", "COLUMN"))


REFUSED = {
    "UTF-16": (LINES.decode().encode("utf-16"), "UTF-16 text. Fix: save it as UTF-8"),
    "UTF-16 without a mark": (LINES.decode().encode("utf-16-le"), "iconv -f UTF-16LE"),
    "UTF-32": (LINES.decode().encode("utf-32"), "UTF-32"),
    "Latin-1": (json.dumps(row(1), ensure_ascii=False).encode("latin-1") + b"\n", "iconv -f WINDOWS-1252"),
    "Chinese": ("".join(f'{{"问题": "你好{n}"}}\n' for n in range(9)).encode("gbk"), "iconv -f GB18030"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
    "xlsx": (archive(("[Content_Types].xml", b""), ("xl/workbook.xml", b"")), "save it as CSV"),
    "checkpoint": (archive(("model/data.pkl", b"x")), "never loaded"),
    "pickle": (b"\x80\x04\x95\x10\0\0\0", "a pickle, which is never loaded"),
    "PDF": (b"%PDF-1.7\n", "a PDF file"),
    "SQLite": (b"SQLite format 3\0" + bytes(90), "a SQLite database"),
    "safetensors": ((99).to_bytes(8, "little") + b'{"x":{}}', "file of weights"),
    "tar in gzip": (gzip.compress(tar()), "a tar archive"),
    "gzip twice": (gzip.compress(gzip.compress(LINES)), "compressed twice"),
    "zip of two": (archive(("a.jsonl", LINES), ("b.jsonl", LINES)), "2 files: a.jsonl, b.jsonl"),
    "zip of none": (archive(), "no file"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "an HTML page"),
    "XML": (b"<?xml version='1.0'?>\n<a/>\n", "but XML"),
    "YAML": (b"- role: user\n  content: q\n- role: assistant\n  content: a\n", "but YAML"),
    "recipe": (b"base: tiny-random\ndata:\n  train: a.jsonl\ntraining: {}\n", "but a recipe"),
    "Python": (b"{'messages': [{'role': 'user', 'content': 'q'}]}\n" * 30, "json.dumps"),
    "comments": (b"// rows\n" + LINES[:60].replace(b'"', b"'") + b"\n", "JSON with comments"),
    "prose": (b"One day, a cat came.\nIt was grey, old, and hungry.\nNobody knew it.\n", "data.format=text"),
    "commas in prose": (b"Roses are red, violets are blue.\nSugar is sweet, and you are too.\n", "format=text"),
    "texts": (b'"one"\n"two"\n', "not a JSON object"),
    "lists": (b'["q", "a"]\n["q", "b"]\n', "is a list, not a JSON object"),
    "two lists": (json.dumps({"a": ROWS, "b": ROWS}).encode(), "lists of rows under 'a', 'b'"),
    "columns": (b'{"question": ["a", "b"], "answer": ["c", "d"]}', "has lists of columns in place of a list of rows"),
    "rows by name": (json.dumps({"a": row(1), "b": row(2)}).encode(), "has objects under names"),
    "trailing comma": (b'{"messages": [],}\n' * 30, "is not valid JSON"),
    "NaN": (b'{"messages": NaN}\n' * 30, "contains NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_names_a_file_that_is_not_read_in_one_message(read, name):
    content, words = REFUSED[name]
    with pytest.raises(DataError) as error:
        read(content)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) <= 9


@pytest.mark.parametrize("name", ["Python", "HTML", "YAML", "prose"])
def test_names_the_kind_also_when_the_recipe_names_the_format(read, name):
    content, words = REFUSED[name]
    with pytest.raises(DataError, match=words):
        read(content, ReadingOptions("messages"))


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, zstandard_stream, lambda data: archive(("a", data))])
def test_damaged_and_exploding_archives_end_in_one_sentence(read, monkeypatch, pack):
    content = pack(LINES * 500)
    for damaged in (content[: len(content) // 2], content[:40] + b"\xff" * 30 + content[70:]):
        with pytest.raises(DataError, match="damaged or truncated"):
            read(damaged)
    monkeypatch.setattr(size_limits, "ALWAYS_ALLOWED_BYTES", 10_000)
    monkeypatch.setattr(size_limits, "MAX_COMPRESSION_RATIO", 2)
    with pytest.raises(DataError, match="decompresses to more than"):
        read(content)


def test_an_arrow_file_with_wrong_offsets_or_a_lost_end_is_refused(read):
    table = pa.table({"prompt": ["a" * 9, "b" * 9], "completion": ["c", "d"]})
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    content = out.getvalue()
    offsets = (9).to_bytes(4, "little") + (18).to_bytes(4, "little")
    assert offsets in content
    for bad in (content.replace(offsets, b"\xff\xff\xff\x0f" * 2), content[: len(content) // 2]):
        with pytest.raises(DataError, match="Cannot read"):
            read(bad)


def test_faults_in_json_have_the_number_of_the_element_or_the_line(read):
    bad = {"messages": [{"role": "user", "content": "q"}]}
    for content, where in {
        json.dumps([*ROWS, bad]): r"data:6: .*\(element 6 of the list\)",
        json.dumps({"data": [*ROWS, bad]}): r"data:6: .*\(element 6 of the list\)",
        "[\n" + ",\n".join(json.dumps(one) for one in [*ROWS, bad]) + "\n]": r"data:7: ",
        json.dumps(ROWS)[:-30]: r"data:5: is not valid JSON.*\(element 5",
        json.dumps({"data": ROWS}, indent=1)[:-30]: r"data:\d+: .*nothing after it can be read",
    }.items():
        with pytest.raises(DataError, match=where):
            read(content)
    (first, *_), counts = read(json.dumps([*ROWS, bad]), skip_bad=1)
    assert (first.line, counts.accepted) == (1, 5)


def test_a_last_line_that_is_cut_off_is_named(read):
    with pytest.raises(DataError, match="data:5: is cut off, because the file ends in the middle"):
        read(LINES[:-40])
