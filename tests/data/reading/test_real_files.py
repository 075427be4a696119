"""Read real dialogues in every format and kind of file; none of them is stored in this repository."""

import gzip
import json
import os
from pathlib import Path

import pytest
from test_formats import as_parquet, json_lines, table

from lora_chat.data.encoding.encode import IGNORE_INDEX
from lora_chat.data.parsing.rows import ReadingOptions, read_chunks, read_dialogues
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodingOptions

FOLDER = Path(__file__).parents[4] / "shared" / "data"
NAMES = ("coffee_orders.jsonl", "grade_school_math.jsonl", "chinese_talk.jsonl")
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"there is no {FOLDER}; these files are not published")
ALL = None if os.environ.get("LORA_CHAT_ALL_REAL") else 60
EVERY = [pytest.param(24, id="some"), pytest.param(ALL, id="many", marks=pytest.mark.slow)]


def pairs(messages):
    return [[a["content"], b["content"]] for a, b in zip(messages[::2], messages[1::2], strict=True)]


def as_sharegpt(messages):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages]}


def as_alpaca(messages):
    *history, (asked, answered) = pairs(messages)
    return {"instruction": asked, "input": "", "output": answered, "history": history}


FORMS = {
    "messages": lambda m: {"messages": m},
    "sharegpt": as_sharegpt,
    "alpaca": as_alpaca,
    "prompt_completion": lambda m: {"prompt": m[:-1], "completion": m[-1:]},
}
ONE_TURN = {
    "columns": lambda m: {"asked": m[0]["content"], "answered": m[1]["content"], "id": "7"},
    "prompt_completion": lambda m: {"prompt": m[0]["content"], "completion": m[1]["content"]},
}
COLUMNS = {"user": "asked", "assistant": "answered"}


KINDS = {
    "json lines": json_lines,
    "json list": lambda rows: json.dumps(rows, indent=1).encode(),
    "csv": lambda rows: table(rows, ","),
    "tsv": lambda rows: table(rows, "\t"),
    "parquet": as_parquet,
    "gzip": lambda rows: gzip.compress(json_lines(rows), 1),
}


def chats_of(name, count):
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    step = len(lines) // count if count else 1
    return [json.loads(line)["messages"] for line in lines[::step]]


def said(dialogues):
    return [[(m.role, m.content) for m in dialogue.messages] for dialogue in dialogues]


def encode_file(path, tokenizer, stops, reading):
    encoder = ChunkEncoder(tokenizer, stops, EncodingOptions(reading, 1 << 20))
    return [one for chunk in read_chunks([path], reading) for one in encoder(chunk).dialogues]


@pytest.mark.parametrize("count", EVERY)
@pytest.mark.parametrize("name", NAMES)
def test_real_dialogues_are_the_same_in_every_format_and_file(tmp_path, tiny_tokenizer, name, count):
    chats = chats_of(name, count)
    stops = [tiny_tokenizer.eos_token_id]
    expected = [[(m["role"], m["content"]) for m in chat] for chat in chats]
    original = tmp_path / "original"
    original.write_bytes(json_lines([{"messages": chat} for chat in chats]))
    whole = [rows for _, rows in encode_file(original, tiny_tokenizer, stops, ReadingOptions())]
    last = [rows for _, rows in encode_file(original, tiny_tokenizer, stops, ReadingOptions(last_turn_only=True))]
    ways = [(data_format, kind, make) for data_format, make in FORMS.items() for kind in KINDS]
    # A table cell contains a prompt as text, never as a list.
    ways = [way for way in ways if way[0] != "prompt_completion" or way[1] not in ("csv", "tsv")]
    if all(len(chat) == 2 for chat in chats):
        ways += [(data_format, kind, make) for data_format, make in ONE_TURN.items() for kind in KINDS]
    for data_format, kind, make in ways:
        path, what = tmp_path / "written", f"{data_format} in {kind}"
        path.write_bytes(KINDS[kind]([make(chat) for chat in chats]))
        reading = ReadingOptions(columns=COLUMNS if data_format == "columns" else {})
        dialogues, report = read_dialogues(path, options=reading)
        assert said(dialogues) == expected, what
        assert (report.accepted, report.refused) == (len(chats), 0), what
        trained = last if data_format == "prompt_completion" else whole
        if kind == "parquet" or (count and kind == "json lines"):
            assert [rows for _, rows in encode_file(path, tiny_tokenizer, stops, reading)] == trained, what


def stretches(row):
    """Return the spans with loss."""
    found, held = [], []
    for label in [*row.labels, IGNORE_INDEX]:
        if label != IGNORE_INDEX:
            held.append(label)
        elif held:
            found.append(held)
            held = []
    return found


def check_stretches(path, tokenizer, stops):
    stop = tokenizer.decode(stops[:1])
    count = 0
    for dialogue, rows in encode_file(path, tokenizer, stops, ReadingOptions()):
        replies = [m.content for m in dialogue.messages if m.role == "assistant"]
        texts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for row in rows for ids in stretches(row)]
        assert texts == [reply + stop for reply in replies]
        count += len(texts)
    assert count


@pytest.mark.parametrize("count", EVERY)
@pytest.mark.parametrize("name", NAMES)
def test_supervised_tokens_decode_to_the_replies(tmp_path, tiny_tokenizer, name, count):
    path = tmp_path / "chats"
    path.write_bytes(json_lines([{"messages": chat} for chat in chats_of(name, count)]))
    check_stretches(path, tiny_tokenizer, [tiny_tokenizer.eos_token_id])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_encodes_the_same_with_the_tokenizer_of_the_embedded_base(cache_home, name):
    from transformers import AutoTokenizer

    from lora_chat.models.bundled import find_bundled_base

    tokenizer = AutoTokenizer.from_pretrained(find_bundled_base("smollm2-135m-instruct"))
    check_stretches(FOLDER / name, tokenizer, [tokenizer.eos_token_id])
