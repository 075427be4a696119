import copy
import gzip
import json
import os
import random
import re
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lora_chat.data.parsing import line_counts
from lora_chat.data.parsing import rows as rows_module
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.parsing.rows import ReadingOptions, read_chunks, read_dialogues
from lora_chat.data.storage import encode_chunk, ledger
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodingOptions
from lora_chat.data.storage.ledger import sum_ledgers
from lora_chat.errors import DataError
from lora_chat.system.strict_json import parse_strict_json


def row(question="q", answer="a"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


GOOD = json.dumps(row()).encode()
ODD_LINES = {
    "no JSON": b"just words",
    "half an object": b'{"messages": [',
    "two objects": GOOD + GOOD,
    "single quotes": b"{'messages': []}",
    "a number": b"3",
    "a list": b"[" + GOOD + b"]",
    "wrong key": b'{"conversations": []}',
    "wrong role": b'{"messages": [{"role": "narrator", "content": "q"}, {"role": "assistant", "content": "a"}]}',
    "no trained reply": b'{"messages": [{"role": "assistant", "content": "a", "train": false}]}',
    "no assistant": b'{"messages": [{"role": "user", "content": "q"}]}',
    "repeated key": GOOD[:-1] + b', "messages": []}',
    "repeated key inside": GOOD.replace(b'"role": "user"', b'"role": "user", "role": "user"'),
    "NaN": GOOD[:-1] + b', "score": NaN}',
    "Infinity": GOOD[:-1] + b', "score": -Infinity}',
    "too many digits": GOOD[:-1] + b', "id": ' + b"9" * 5000 + b"}",
    "too many digits in a fraction": GOOD[:-1] + b', "id": 1e999}',
    "nested a little too deep": GOOD[:-1] + b', "x": ' + b"[" * 101 + b"]" * 101 + b"}",
    "nested too deep": b"[" * 100_000,
    "nested too deep beside messages": GOOD[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "lone surrogate": GOOD.replace(b'"q"', b'"\\ud83d"'),
    "half UTF-8": GOOD.replace(b'"q"', b'"\xc3"'),
    "Latin-1": GOOD.replace(b'"q"', b'"caf\xe9"'),
    "UTF-16": json.dumps(row()).encode("utf-16-le"),
    "a second byte order mark": b"\xef\xbb\xbf" + GOOD,
    "a NUL": b"\x00",
    "a control character in a string": GOOD.replace(b'"q"', b'"\x0b"'),
}


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "chats.jsonl"
        path.write_bytes(content)
        return path

    return write


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        read_dialogues(path, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_dialogues_carry_their_lines_and_every_line_is_counted(file):
    path = file(GOOD + b"\n\n" + json.dumps(row("two", "zwei")).encode() + b"\n  \t\n")
    dialogues, report = read_dialogues(path)
    assert [d.line for d in dialogues] == [1, 3]
    assert dialogues[1].as_dicts == row("two", "zwei")["messages"]
    assert (report.lines, report.accepted, report.blank, report.refused) == (4, 2, 2, 0)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_mark_make_no_difference(file, end, last, mark):
    dialogues, report = read_dialogues(file(mark + end.join([GOOD, GOOD]) + (end if last else b"")))
    assert [d.line for d in dialogues] == [1, 2]
    assert [d.as_dicts for d in dialogues] == [row()["messages"]] * 2
    assert (report.lines, report.accepted) == (2, 2)


def test_only_a_line_feed_ends_a_line(file):
    odd = "a\u2028b\u2029c\x85d\x0ce"
    path = file(json.dumps(row(answer=odd), ensure_ascii=False).replace("\\f", "\\u000c").encode() + b"\n" + GOOD)
    dialogues, _ = read_dialogues(path)
    assert dialogues[0].messages[1].content == odd
    assert dialogues[1].line == 2


@pytest.mark.parametrize("odd", ODD_LINES)
def test_refuses_a_faulty_line_with_file_and_line(file, odd):
    path = file(GOOD + b"\n\n" + ODD_LINES[odd] + b"\n" + GOOD + b"\n")
    message = refusal(path)
    assert re.findall(rf"{re.escape(str(path))}:(\d+): \S", message) == ["3"]
    assert "1 line of" in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ("half an object", "column"),
        ("repeated key", "'messages' twice"),
        ("repeated key inside", "'role' twice"),
        ("NaN", "NaN"),
        ("too many digits", "a number of 5000 digits"),
        ("too many digits in a fraction", "1e999, which is too large"),
        ("nested too deep", "nested too deeply"),
        ("nested a little too deep", "nested too deeply"),
        ("lone surrogate", "surrogate"),
        ("Latin-1", "UTF-8"),
        ("half UTF-8", "UTF-8"),
        ("wrong role", "'narrator'"),
    ],
)
def test_refusal_names_the_fault(file, odd, told):
    assert told in refusal(file(GOOD + b"\n" + ODD_LINES[odd]))


def test_counts_the_byte_of_invalid_utf8_from_one(file):
    assert "byte 3 of" in refusal(file(b"ab\xff"))


def test_shows_twenty_refusals_and_counts_the_rest(file):
    path = file(b"".join([b"x\n", GOOD + b"\n"] * 23))
    message = refusal(path)
    assert re.findall(r"chats\.jsonl:(\d+):", message) == [str(line) for line in range(1, 40, 2)]
    assert "23 lines" in message
    assert "... and 3 more" in message
    assert "--set data.skip_bad=" in message


def test_exactly_twenty_refusals_have_no_rest(file):
    message = refusal(file(b"x\n" * 20))
    assert "more" not in message


def test_shows_the_faulty_text_below_each_refusal(file):
    lines = refusal(file(GOOD + b"\n" + b"just words\n" + ODD_LINES["wrong role"])).splitlines()
    assert lines[2] == "    just words"
    assert lines[4] == '    {"role": "narrator", "content": "q"}'


def test_excerpt_of_a_faulty_line_is_short_and_sanitized(file):
    path = file(GOOD + b"\n\x1b[2J\x07\xe2\x80\xae\xe2\x80\xa8" + b"x" * 5000 + b"\n")
    message = refusal(path)
    assert "\\x1b[2J\\x07\\u202e\\u2028xxx" in message
    assert not set(message) & {"\x1b", "\x07", "\u202e", "\u2028"}
    assert len(message) < 1000


@pytest.mark.parametrize("role", ["r" * 10_000, "\x1b[31m", ["x"] * 5000, {"a": "b" * 5000}])
def test_reasons_are_short_and_free_of_control_characters(file, role):
    bad = json.dumps({"messages": [{"role": role, "content": "q"}]}).encode()
    message = refusal(file(GOOD + b"\n" + bad))
    assert len(message) < 1500
    assert "\x1b" not in message


def test_skips_as_many_faulty_lines_as_allowed(file):
    path = file(b"x\n" + GOOD + b"\ny\n")
    dialogues, report = read_dialogues(path, skip_bad=2)
    assert [d.line for d in dialogues] == [2]
    assert (report.lines, report.accepted, report.blank, report.refused) == (3, 1, 0, 2)
    assert [reason.split(": ")[0] for reason in report.refusals] == [f"{path}:1", f"{path}:3"]
    assert "allows 1" in refusal(path, skip_bad=1)


def test_a_report_keeps_twenty_refusals_at_most(file):
    _, report = read_dialogues(file(b"x\n" * 29 + GOOD), skip_bad=29)
    assert report.refused == 29
    assert len(report.refusals) == 20


@pytest.mark.parametrize("content", [b"", b"\n", b"\n \n\t\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_file_without_dialogues_is_refused(file, content):
    path = file(content)
    assert f"{path} contains no dialogue" in refusal(path)


def test_refuses_a_file_with_only_allowed_faults(file):
    message = refusal(file(b"x\n"), skip_bad=1)
    assert "no dialogue (1 lines, 0 of them blank, 1 refused)" in message
    assert "chats.jsonl:1: is not valid JSON" in message


def test_a_missing_file_is_refused(tmp_path):
    assert f"There is no file {tmp_path / 'none.jsonl'}" in refusal(tmp_path / "none.jsonl")
    assert str(tmp_path) in refusal(tmp_path / "no" / "folder.jsonl")


def test_an_empty_folder_and_a_path_through_a_file_are_refused(tmp_path, file):
    assert "There is no file in" in refusal(tmp_path)
    assert "chats.jsonl" in refusal(file(GOOD) / "inside.jsonl")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "assistant", "system", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["messages", "role", "content"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": st.text() | VALUES}
    ),
    max_size=4,
)
LINES = st.one_of(
    st.just((True, GOOD)),
    st.sampled_from([b"", b" ", b"\t\r", "\u2003".encode()]).map(lambda line: (False, line)),
    st.binary(max_size=30).map(lambda line: (False, line.replace(b"\n", b""))),
    st.text(max_size=20).map(lambda line: (False, line.encode().replace(b"\n", b""))),
    VALUES.map(lambda value: (None, json.dumps(value).encode())),
    MESSAGES.map(lambda value: (None, json.dumps({"messages": value}).encode())),
    st.integers(0, len(GOOD) - 1).map(lambda cut: (False, GOOD[:cut])),
    st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=2)).map(
        lambda t: (None, (GOOD[: t[0]] + t[1] + GOOD[t[0] + 1 :]).replace(b"\n", b""))
    ),
)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    lines=st.lists(LINES, max_size=8),
    end=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_every_line_is_accounted_for_whatever_the_bytes(tmp_path_factory, lines, end, last, mark):
    content = mark + end.join(line for _, line in lines) + (end if last else b"")
    assume(not content.removeprefix(mark).lstrip().startswith(b"["))  # one list has a test of its own
    assume(not content.startswith((b"PAR1", b"\x1f\x8b")))  # Parquet and gzip are other kinds of files
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    there = content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    try:
        dialogues, report = read_dialogues(path, skip_bad=len(lines) + 1)
    except DataError as error:
        assert "contains no dialogue" in str(error)
        assert not any(good for good, _ in lines)
        return
    assert report.lines == there
    assert report.accepted + report.blank + report.refused == there
    assert report.accepted == len(dialogues)
    taken = [d.line for d in dialogues]
    assert taken == sorted(set(taken))
    assert set(taken) >= {number for number, (good, _) in enumerate(lines, 1) if good}
    assert not set(taken) & {number for number, (good, _) in enumerate(lines, 1) if good is False}


# Fuzz tests: rows of every format with many kinds of damage.
FUZZ_SEED = 20240
ROWS_OF_A_FILE = 250
WITH_TOOLS = """{%- if tools %}{{ 'tools: ' + tools | tojson + eos_token }}{% endif -%}
{%- for m in messages %}{{ m.role + ':' }}{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}
{%- endif %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments | tojson }}
{%- endfor %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
SAID = [
    "hi",
    "a\nb",
    "<|im_end|>",
    "<|im_start|>system\n",
    "\r\n",
    "\u2028",
    "\x85",
    "\x0b",
    "\x00",
    "\x1b[2J",
    "\u202e",
]
SAID += [
    "\U0001f642",
    "\u4f60\u597d",
    "e\u0301",
    " ",
    "\ufeff",
    "</think>",
    "<think>x</think>",
    "{{ 7 }}",
    "'\"\\",
    "\ufffd",
]
ODD = [None, True, False, 0, 1, -1, 1.5, 10**30, 1e308, "", " ", "\ud800", "x\udfffy", "\U000f0000", [], {}, [[]], [{}]]
ODD += [
    {"role": "user"},
    {"role": "assistant", "content": "a"},
    {"from": "gpt"},
    [None],
    ["a", "b"],
    [["q", "a"]],
    "[1]",
]
ODD += ["user", "assistant", "system", "tool", "{}", "x" * 3000, "\u0000", float("nan"), float("inf"), -float("inf")]
KEYS = [
    "messages",
    "conversations",
    "role",
    "content",
    "from",
    "value",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "id",
]
KEYS += ["train", "weight", "turns", "tools", "system", "reasoning", "thinking", "prompt", "completion", "instruction"]
KEYS += ["input", "output", "history", "text", "goes_on", "begins", "\x1b", "\ud83d", "<|im_end|>", ""]


def some_text(chance):
    return "".join(chance.choice(SAID) for _ in range(chance.randint(1, 4))) + chance.choice(["", "w", "  w"])


def some_messages(chance):
    made = [{"role": "system", "content": some_text(chance)}] if chance.random() < 0.2 else []
    for _ in range(chance.randint(1, 3)):
        made.append({"role": "user", "content": some_text(chance)})
        if chance.random() < 0.15:
            call = {"id": "c1", "function": {"name": "f", "arguments": {"at": [1, None, {"x": some_text(chance)}]}}}
            made.append({"role": "assistant", "content": None, "tool_calls": [call]})
            made.append({"role": "tool", "content": some_text(chance), "tool_call_id": "c1", "name": "f"})
        made.append({"role": "assistant", "content": some_text(chance)})
        if chance.random() < 0.2:
            made[-1][chance.choice(["reasoning", "thinking", "reasoning_content"])] = some_text(chance)
        if chance.random() < 0.2:
            made[-1] |= chance.choice([{"train": False}, {"weight": 1}, {"train": True}, {"weight": 0}])
    return made


def some_conversation(chance):
    made = [{"from": "system", "value": "s"}] if chance.random() < 0.2 else []
    made += [{"from": "human", "value": some_text(chance)}]
    if chance.random() < 0.2:
        made += [{"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'}]
        made += [{"from": "observation", "value": "o"}]
    return {"conversations": [*made, {"from": "gpt", "value": some_text(chance)}]}


FUZZED = {
    "messages": lambda c: (
        {"messages": some_messages(c)} | c.choice([{}, {"tools": [{"name": "f"}]}, {"turns": "last"}])
    ),
    "sharegpt": some_conversation,
    "alpaca": lambda c: (
        {"instruction": some_text(c), "input": c.choice(["", "more"]), "output": some_text(c)}
        | c.choice([{}, {"history": [["q", "a"]]}, {"system": "s"}])
    ),
    "prompt_completion": lambda c: c.choice(
        [
            {"prompt": some_text(c), "completion": some_text(c)},
            {
                "prompt": [{"role": "user", "content": some_text(c)}],
                "completion": [{"role": "assistant", "content": some_text(c)}],
            },
        ]
    ),
    "text": lambda c: {"text": some_text(c)},
}


def inside(value):
    """Return all lists and objects in a value."""
    if isinstance(value, dict | list):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from inside(part)


def changed_value(chance, row):
    row = copy.deepcopy(row)
    for _ in range(chance.randint(1, 2)):
        place = chance.choice(list(inside(row)))
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        odd = copy.deepcopy(chance.choice(ODD))
        if keys and chance.random() < 0.6:
            place[chance.choice(keys)] = odd
        elif keys and chance.random() < 0.5:
            place.pop(chance.choice(keys))
        elif isinstance(place, dict):
            place[chance.choice(KEYS)] = odd
        else:
            place.append(odd)
    return row


def damaged(chance, row):
    """Return a row as one line of JSON, sometimes with a fault."""
    kind = chance.randrange(10)
    if kind < 3:
        return json.dumps(row, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")
    if kind < 7:
        return json.dumps(changed_value(chance, row), ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")
    line = bytearray(json.dumps(row, ensure_ascii=chance.random() < 0.5).encode())
    if kind == 7:  # bytes
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(line))
            line[place : place + chance.randrange(3)] = bytes(chance.randrange(256) for _ in range(chance.randrange(3)))
        return bytes(line) or b"x"
    if kind == 8:  # what JSON may hold beside the rest
        odd = [b'"x": 1e999', b'"x": ' + b"9" * 5000, b'"x": NaN', b'"x": 1, "x": 2', b'"messages": 1', b'"x": -0.0']
        depth = chance.choice([50, 99, 100, 500, 2000])
        odd += [
            b'"tools": [{"a": ' + b"[" * depth + b"]" * depth + b"}]",
            b'"x": ' + b'{"a":' * depth + b"1" + b"}" * depth,
        ]
        return bytes(line[:-1]) + b", " + chance.choice(odd) + b"}"
    return chance.choice(
        [b"", b" ", b"\t\r", b"\xe2\x80\xa8", b"[]", b"{}", b"null", b"3", bytes(line[: len(line) // 2]), b"\xff"]
    )


def fuzzed_lines(chance, data_format):
    first = json.dumps(FUZZED[data_format](random.Random(1))).encode()
    lines = [first] + [
        damaged(chance, FUZZED[data_format](chance)).replace(b"\n", b" ") for _ in range(ROWS_OF_A_FILE - 1)
    ]
    content = b"".join(line + chance.choice([b"\n", b"\n", b"\r\n"]) for line in lines)
    content = chance.choice([b"", b"\xef\xbb\xbf"]) + (content if chance.random() < 0.5 else content[:-1])
    return content if chance.random() < 0.8 else gzip.compress(content, 1), ROWS_OF_A_FILE


def fuzzed_list(chance, data_format):
    rows = [FUZZED[data_format](random.Random(1))]
    made = [FUZZED[data_format](chance) for _ in range(ROWS_OF_A_FILE - 1)]
    rows += [changed_value(chance, row) if chance.random() < 0.6 else row for row in made]
    texts = [re.sub("NaN|-?Infinity", "1", json.dumps(row, indent=chance.choice([None, 1]))) for row in rows]
    return ("[" + ",\n".join(texts) + "]").encode(), ROWS_OF_A_FILE


def accounts_for_every_line(path, encoder, options, there):
    """Read and encode a file, and check that every line is counted once and each refusal names its line."""
    encoded = [encoder(chunk) for chunk in read_chunks([path], options)]
    book = sum_ledgers([one.ledger for one in encoded])
    assert book.lines == there
    assert book.accepted + book.blank + book.refused + book.dropped == there
    refused = [re.match(rf"{re.escape(str(path))}:(\d+): \S", text) for text in book.refusals]
    assert all(refused)
    assert len(refused) == book.refused
    long = [re.match(rf"{re.escape(str(path))}:(\d+): \d+ tokens$", text) for text in book.over_long]
    assert len(long) == book.dropped
    assert not {character for text in book.refusals for character in text} & {"\x1b", "\x00", "\u202e", "\u2028"}
    dialogues = [one for part in encoded for one in part.dialogues]
    texts = [one for part in encoded for one in part.text]
    assert len(dialogues) + len(texts) == book.accepted
    for dialogue, rows in dialogues:
        again = parse_dialogue(parse_strict_json(json.dumps(dialogue.as_row, ensure_ascii=False)), dialogue.line)
        assert replace(again, path=dialogue.path) == dialogue
        for row in rows:
            assert len(row.input_ids) == len(row.labels) <= encoder.options.max_length
            assert 0 < row.supervised_tokens < len(row.input_ids)
    return dialogues, texts, [int(found[1]) for found in refused + long]


def test_fuzzed_rows_are_accepted_or_refused_and_none_is_lost(tmp_path, tiny_tokenizer, monkeypatch):
    """Test ten thousand rows; LORA_CHAT_FUZZ_ROWS=100000 sets more, LORA_CHAT_FUZZ_SEED sets others."""
    rows, seed = (
        int(os.environ.get("LORA_CHAT_FUZZ_ROWS", "10000")),
        int(os.environ.get("LORA_CHAT_FUZZ_SEED", FUZZ_SEED)),
    )
    for module in (rows_module, ledger, encode_chunk, line_counts):
        monkeypatch.setattr(module, "MAX_SHOWN_FAULTS", 10**6)
    plain, tools = copy.deepcopy(tiny_tokenizer), copy.deepcopy(tiny_tokenizer)
    tools.chat_template = WITH_TOOLS
    options = ReadingOptions()
    encoders = [
        ChunkEncoder(tokenizer, [tokenizer.eos_token_id], EncodingOptions(options, 512, over_long))
        for tokenizer in (tools, plain)
        for over_long in ("drop", "cut")
    ]
    path = tmp_path / "fuzzed"
    accepted = 0
    for number in range(seed, seed + rows // ROWS_OF_A_FILE):
        chance = random.Random(number)
        data_format = list(FUZZED)[number % len(FUZZED)]
        make = fuzzed_list if number % 4 == 3 else fuzzed_lines
        content, there = make(chance, data_format)
        path.write_bytes(content)
        try:
            dialogues, texts, refused = accounts_for_every_line(path, encoders[number // 4 % 4], options, there)
            if make is fuzzed_lines:
                taken = [dialogue.line for dialogue, _ in dialogues] + [line for line, _ in texts]
                assert len(set(taken + refused)) == len(taken + refused)
                assert set(taken + refused) <= set(range(1, there + 1))
        except BaseException:
            print(f"LORA_CHAT_FUZZ_SEED={number} LORA_CHAT_FUZZ_ROWS={ROWS_OF_A_FILE}: {data_format}, {make.__name__}")
            raise
        accepted += len(dialogues) + len(texts)
    assert accepted > rows / 10


@pytest.mark.parametrize("kind", ["json_list", "csv", "parquet", "gzip"])
def test_damaged_files_give_counts_or_a_message(tmp_path, kind, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "damaged"
    rows = [row(f"question {i}", f"answer {i}") for i in range(40)]
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "csv":
        path.write_text("prompt,completion\n" + "".join(f'"question, {i}","answer\n{i}"\n' for i in range(40)))
    else:
        text = json.dumps(rows) if kind == "json_list" else "".join(json.dumps(one) + "\n" for one in rows)
        path.write_bytes(text.encode() if kind == "json_list" else gzip.compress(text.encode()))
    whole = path.read_bytes()
    for seed in range(120):
        chance = random.Random(seed)
        content = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(bytes(content[: chance.choice([None, chance.randrange(len(content))])]))
        try:
            dialogues, report = read_dialogues(path, skip_bad=10**6)
        except DataError as error:
            assert str(path) in str(error), seed
            continue
        assert report.accepted + report.blank + report.refused == report.lines, seed
        assert report.accepted == len(dialogues), seed
