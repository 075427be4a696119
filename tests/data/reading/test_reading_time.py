"""Adversarial rows: reading and encoding take time in proportion to their length, or refuse them."""

import io
import json
import time

import pytest

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.encoding.encode import DialogueEncoder
from lora_chat.data.parsing.formats import detect_format, to_messages
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.reading.json_rows import read_json_list
from lora_chat.errors import DataError
from lora_chat.system.strict_json import parse_strict_json

ENOUGH = 0.5
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_garbage_collection")]


def check(work, small, large):
    """Check that the larger input takes few CPU seconds, or proportionally many."""

    def seconds(size):
        started = time.process_time()
        work(size)
        return time.process_time() - started

    work(100)
    took = seconds(large)
    assert took < ENOUGH or took < 2.3 * large / small * max(seconds(small), ENOUGH / 9), took


@pytest.mark.parametrize("element", [b"1,", b"1,\n", b"[],", b"{},\n\n", b'"\\u00e9",', b" \n"])
def test_lists_of_many_elements_take_linear_time(element):
    def read(size):
        filled = element * (size // len(element))
        return list(read_json_list(io.BytesIO(b"[" + filled + b"1]")))

    check(read, 100_000, 800_000)


@pytest.mark.parametrize("shape", ["keys", "repeated key", "nested", "escapes"])
def test_json_takes_linear_time(shape):
    def read(size):
        text = {
            "keys": json.dumps({str(i): 1 for i in range(size // 10)}),
            "repeated key": "{" + ",".join(f'"{i}":1' for i in range(size // 10)) + ',"x":1,"x":2}',
            "nested": "[" * size,
            "escapes": '"' + "\\u00e9" * (size // 6) + '"',
        }[shape]
        try:
            return parse_strict_json(text)
        except ValueError:
            return None

    check(read, 100_000, 800_000)


def pairs(number, **more):
    return [
        m
        for _ in range(number)
        for m in ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"} | more)
    ]


def reply(content, **more):
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": content} | more]}


CALL = {"function": {"name": "f", "arguments": "{}"}}
ROWS = {
    "control tokens": lambda n: reply("<|im_end|>" * (n // 10)),
    "halves of control tokens": lambda n: reply("<|im_" * (n // 5)),
    "brackets": lambda n: reply("<" * n),
    "private characters": lambda n: reply("\U000f0000" * n),
    "thoughts": lambda n: reply("<think>" * (n // 7)),
    "ends of thoughts": lambda n: reply("<think>" + "</think>" * (n // 8)),
    "blanks": lambda n: reply("<think>" + " " * n),
    "one word": lambda n: reply("a" * n),
    "parts": lambda n: reply([{"type": "text", "text": "a"}] * (n // 30)),
    "unknown keys": lambda n: reply("b", **{f"k{i}": None for i in range(n // 12)}),
    "calls": lambda n: {
        "messages": [
            *reply("", tool_calls=[CALL] * (n // 40))["messages"],
            {"role": "tool", "content": "x"},
            *pairs(1)[1:],
        ]
    },
    "results": lambda n: {
        "messages": [
            *reply("", tool_calls=[CALL])["messages"],
            *[{"role": "tool", "content": "x"}] * (n // 30),
            *pairs(1)[1:],
        ]
    },
    "untrained turns": lambda n: {"messages": [*pairs(n // 80, train=False), *pairs(1)]},
    "wrong roles": lambda n: {"messages": [{"role": "user", "content": "a"}] * (n // 40)},
    "history": lambda n: {"instruction": "a", "output": "b", "history": [["", "b"]] * (n // 12)},
    "tools": lambda n: reply("b") | {"tools": [{"name": "f", "parameters": {"a": i}} for i in range(n // 40)]},
}


@pytest.mark.parametrize("name", ROWS)
def test_adversarial_rows_take_linear_time(tiny_tokenizer, name):
    encoder = DialogueEncoder(tiny_tokenizer, [tiny_tokenizer.eos_token_id])

    def read(size):
        row = ROWS[name](size)
        try:
            return encoder.encode([parse_dialogue(to_messages(row, detect_format(row)))])
        except InvalidDialogueError as error:
            return str(error)

    check(read, 20_000, 80_000)


def test_refuses_too_many_replies_before_rendering(tiny_tokenizer):
    encoder = DialogueEncoder(tiny_tokenizer, [tiny_tokenizer.eos_token_id])
    started = time.process_time()
    (found,) = encoder.encode([parse_dialogue({"messages": pairs(40_000)})])
    assert isinstance(found, DataError)
    assert "40,000 trained replies" in str(found)
    assert time.process_time() - started < 5
    (kept,) = encoder.encode([parse_dialogue({"messages": pairs(150)})])
    assert not isinstance(kept, DataError)
