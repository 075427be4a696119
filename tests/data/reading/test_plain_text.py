import io
import json
import random

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lora_chat.cli import main
from lora_chat.data.dataset import build_full_set
from lora_chat.data.parsing.rows import ReadingOptions
from lora_chat.data.reading import files
from lora_chat.data.reading.files import read_rows
from lora_chat.data.storage.build import build_store
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodingOptions
from lora_chat.data.storage.store import DialogueStore

TEXTS = [
    "Once upon a time,\nthere was a pot. ",
    "你好，世界。" * 30,
    "🙂 e\u0301 <|im_end|> <|im_start|>system\n" * 5,
    "end",
]


@pytest.fixture
def blocks_of_file(tmp_path, tiny_tokenizer):
    count = iter(range(1000))

    def make(content, limit=64, workers=1, **reading):
        folder, path = tmp_path / f"store{next(count)}", tmp_path / "text"
        path.write_bytes(content)
        folder.mkdir()
        options = EncodingOptions(ReadingOptions(**reading), limit)
        build_store(folder, [path], ChunkEncoder(tiny_tokenizer, [tiny_tokenizer.eos_token_id], options), workers)
        store = DialogueStore(folder)
        return list(build_full_set([store]).read()) if store.ledger.rows else [], store.ledger

    return make


def json_lines(texts, key="text"):
    return "".join(json.dumps({key: text}) + "\n" for text in texts).encode()


def table(texts, key="text"):
    out = io.StringIO(newline="")
    import csv

    csv.writer(out).writerows([[key, "id"], *[[text, i] for i, text in enumerate(texts)]])
    return out.getvalue().encode()


def as_parquet(texts, key="text"):
    out = io.BytesIO()
    parquet.write_table(pyarrow.table({key: texts}), out)
    return out.getvalue()


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def documents(tokenizer, blocks):
    """Return the texts between the EOS tokens."""
    found, held = [], []
    for token in [token for block in blocks for token in block]:
        if token == tokenizer.eos_token_id:
            found.append(decoded(tokenizer, held))
            held = []
        else:
            held.append(token)
    return found + ([decoded(tokenizer, held)] if held else [])


@pytest.mark.parametrize("make", [json_lines, table, as_parquet])
@pytest.mark.parametrize("key", ["text", "body"])
def test_blocks_of_one_length_contain_the_whole_texts(blocks_of_file, tiny_tokenizer, make, key):
    reading = {"columns": {"text": "body"}} if key == "body" else {"data_format": "text"}
    blocks, ledger = blocks_of_file(make(TEXTS, key), **reading)
    assert {len(block) for block in blocks[:-1]} == {64}
    assert 1 < len(blocks[-1]) <= 64
    assert documents(tiny_tokenizer, blocks) == TEXTS
    assert (ledger.lines, ledger.accepted, ledger.refused) == (4, 4, 0)
    assert ledger.dialogues == ledger.rows == len(blocks)
    assert ledger.tokens == ledger.supervised_tokens == sum(map(len, blocks))
    assert ledger.roles == {"text": [ledger.tokens, ledger.tokens]}
    assert list(ledger.files.values()) == ["text"]


def test_recognises_rows_with_only_text(blocks_of_file, tiny_tokenizer):
    for content in (json_lines(TEXTS), table(TEXTS), as_parquet(TEXTS)):
        assert documents(tiny_tokenizer, blocks_of_file(content)[0]) == TEXTS


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_text_file_is_one_document(blocks_of_file, tiny_tokenizer, end):
    lines = ["First line", "", "  indented 你好", "last"]
    content = b"\xef\xbb\xbf" + end.join(line.encode() for line in lines) + end
    blocks, ledger = blocks_of_file(content, data_format="text")
    assert documents(tiny_tokenizer, blocks) == ["\n".join(lines)]
    assert (ledger.lines, ledger.accepted) == (4, 4)


def test_control_tokens_in_texts_stay_text(blocks_of_file, tiny_tokenizer):
    blocks, _ = blocks_of_file(json_lines(["a<|im_end|>b<|endoftext|><|im_start|>"] * 3))
    flat = [token for block in blocks for token in block]
    assert flat.count(tiny_tokenizer.eos_token_id) == 3
    assert not set(flat) & set(tiny_tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>"]))


def test_refuses_characters_that_the_tokenizer_would_drop(blocks_of_file):
    blocks, ledger = blocks_of_file(json_lines(["good text", "a\U000f0000b\U000f0001"]))
    assert len(blocks) == 1
    assert ":2: contains U+F0000" in ledger.refusals[0]


def test_refuses_empty_text_with_its_line(blocks_of_file):
    rows = [
        {"text": "good"},
        {"text": ""},
        {"text": " \n\t"},
        {"text": None},
        {"body": "x"},
        {"text": ["x"]},
        "x",
        {"text": "\ud800"},
    ]
    _, ledger = blocks_of_file("".join(json.dumps(row) + "\n" for row in rows).encode(), data_format="text")
    assert (ledger.lines, ledger.accepted, ledger.refused) == (8, 1, 7)
    assert [text.split(":")[1] for text in ledger.refusals] == list("2345678")
    _, ledger = blocks_of_file(b"\n \n\n", data_format="text")
    assert (ledger.lines, ledger.refused, ledger.rows) == (3, 3, 0)


def test_skips_only_the_line_of_a_text_file_that_is_not_utf8(blocks_of_file, tiny_tokenizer):
    blocks, ledger = blocks_of_file(b"one\ncaf\xe9\nthree\n", data_format="text")
    assert documents(tiny_tokenizer, blocks) == ["one\nthree"]
    assert (ledger.lines, ledger.accepted, ledger.refused) == (3, 2, 1)
    assert ":2: is not UTF-8 text (byte 4 of the line)" in ledger.refusals[0]


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    lines=st.lists(
        st.sampled_from(["", " ", "one", "你好", "🙂 two ", "<|im_end|>", "\u2003"]), min_size=1, max_size=14
    ),
    piece=st.integers(1, 12),
    ends=st.booleans(),
)
def test_pieces_of_a_text_joined_are_the_text(tmp_path_factory, lines, piece, ends):
    path = tmp_path_factory.getbasetemp() / "pieces"
    content = "\n".join(lines) + ("\n" if ends else "")
    path.write_text(content)
    before, files._TEXT_PIECE_BYTES = files._TEXT_PIECE_BYTES, piece
    try:
        rows = list(read_rows(path, plain_text=True))
    finally:
        files._TEXT_PIECE_BYTES = before
    text = "".join(row.value["text"] for row in rows)
    assert text == content.removesuffix("\n") or not text.strip()
    assert sum(row.lines for row in rows) == content.count("\n") + (content[-1:] not in ("\n", ""))
    assert [row.value["begins"] for row in rows] == [True] * bool(rows) + [False] * (len(rows) - 1)
    assert [row.value.get("goes_on", False) for row in rows] == [True] * (len(rows) - 1) + [False] * bool(rows)
    assert all(row.value["text"].strip() for row in rows) or len(rows) <= 1
    assert [row.line for row in rows[1:]] == [row.line + row.lines for row in rows[:-1]]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_long_text_in_pieces_is_the_same_text(blocks_of_file, tiny_tokenizer, monkeypatch, workers):
    chance = random.Random(0)
    lines = [chance.choice(["你好 " * 9, "", "word " * chance.randint(1, 20), "🙂"]) + str(i) for i in range(900)]
    content = ("\n".join(lines) + "\n\n\n").encode()
    whole, ledger = blocks_of_file(content, data_format="text")
    monkeypatch.setattr(files, "_TEXT_PIECE_BYTES", 100)
    pieces, again = blocks_of_file(content, workers=workers, data_format="text")
    assert pieces == whole
    assert documents(tiny_tokenizer, pieces) == ["\n".join(lines) + "\n\n"]
    assert (
        (again.lines, again.accepted, again.refused) == (ledger.lines, ledger.accepted, ledger.refused) == (902, 902, 0)
    )


def test_encodes_a_very_long_document_quickly(blocks_of_file):
    blocks, _ = blocks_of_file(json_lines(["x" * 64 * 5000]))
    assert len(blocks) == 5000  # the end of the text, one token alone, is left out


@pytest.mark.slow
def test_evaluates_a_run_on_plain_text_again(cache_home, tmp_path, capsys):
    (tmp_path / "book.txt").write_text("\n".join(f"Line {i} of a 你好 book." for i in range(120)))
    (tmp_path / "run.yaml").write_text(f"""
base: {{name: tiny-random}}
quantization: {{mode: none}}
data: {{train: book.txt, format: text, max_length: 64, validation_share: 0.2}}
training: {{max_steps: 2, effective_batch_size: 2}}
evaluation: {{samples: 1, max_new_tokens: 4}}
output: {{directory: {tmp_path}/runs}}
""")
    assert main(["sft", str(tmp_path / "run.yaml"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    run = tmp_path / "runs" / "run-1"
    assert not (run / "validation.jsonl").exists()
    blocks = [json.loads(line) for line in (run / "validation_blocks.jsonl").read_text().splitlines()]
    assert {len(block) for block in blocks} <= {64, *range(2, 64)}
    (tmp_path / "book.txt").unlink()  # the run has all it needs
    assert main(["eval", str(run), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    for side in ("base", "adapted"):
        assert again["validation_loss"][side] == pytest.approx(first["validation_loss"][side], abs=1e-6)
    assert json.loads((run / "comparison.json").read_text())["validation_dialogues"] == len(blocks)
