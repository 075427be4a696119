"""The limit to the rows of a source: the first ones of its files, and nothing after them is read."""

import json

import pytest

from lora_chat.data.parsing.rows import ReadingOptions, parse_chunk, read_chunks, read_dialogues

ROWS = [{"prompt": f"Question {number}?", "completion": "Yes"} for number in range(300)]


def read_questions(paths, limit):
    options = ReadingOptions(limit=limit)
    parsed = [row for chunk in read_chunks(paths, options) for row in parse_chunk(chunk, options)[0]]
    return [int(dialogue.messages[0].content[9:-1]) for dialogue in parsed]


@pytest.mark.parametrize("limit", [1, 63, 64, 65, 200, 299, 300, 500])
@pytest.mark.parametrize("kind", ["lines", "list", "csv", "parquet"])
def test_reads_the_first_rows_of_the_files(tmp_path, kind, limit):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, rows in zip(paths, (ROWS[:200], ROWS[200:]), strict=True):
        if kind == "lines":
            path.write_text("\n".join(f"\n{json.dumps(row)}" for row in rows), encoding="utf-8")
        elif kind == "list":
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        elif kind == "csv":
            lines = [f"{row['prompt']},{row['completion']}" for row in rows]
            path.write_text("\n".join(["prompt,completion", *lines]), encoding="utf-8")
        else:
            pq = pytest.importorskip("pyarrow.parquet")
            pa = pytest.importorskip("pyarrow")
            pq.write_table(pa.Table.from_pylist(rows), path)
    assert read_questions(paths, limit) == list(range(min(limit, 300)))


def test_nothing_after_the_limit_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROWS[0]).encode() + b"\n" + b"not JSON\n" * 5 + b"\xff")
    _, counts = read_dialogues(path, skip_bad=1, options=ReadingOptions(limit=2))
    assert (counts.lines, counts.accepted, counts.refused) == (2, 1, 1)


def test_all_pieces_of_a_text_file_are_one_row(tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.write_text("A line of a long book.\n" * 30_000, encoding="utf-8")
    options = ReadingOptions("text", limit=1)
    pieces = [document for chunk in read_chunks(paths, options) for document in parse_chunk(chunk, options)[0]]
    assert len(pieces) == 3
    assert {piece.path for piece in pieces} == {str(paths[0])}
    assert not pieces[-1].has_next_piece
