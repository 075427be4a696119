"""Replies are divided into reasoning, content and calls, the same for every division into pieces."""

import json
import random
from dataclasses import replace
from itertools import pairwise

import pytest

from lora_chat.data.encoding.turns import TurnReader
from lora_chat.serving.openai.model_traits import traits_of
from lora_chat.serving.openai.reply_parser import ReplyForm, ReplyParser

CALL = '<tool_call>\n{"name": "look_up", "arguments": {"city": "Zürich"}}\n</tool_call>'
SECOND = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2]}}</tool_call>'
PLAIN, TOOLS = ReplyForm(), ReplyForm(tool_names=frozenset({"look_up", "add"}))
THOUGHTS = ReplyForm(writes_reasoning=True)
OPENED = replace(THOUGHTS, opens_reasoning=True)
EMPTY_BLOCK = ReplyForm(strips_empty_block=True)
BOTH = replace(TOOLS, writes_reasoning=True)

CASES = [
    (PLAIN, " Hello \n", "", "Hello", []),
    (PLAIN, "<think>no</think>a", "", "<think>no</think>a", []),
    (PLAIN, CALL, "", CALL, []),
    (THOUGHTS, "<think>\nwell\n</think>\n\nYes. ", "well", "Yes.", []),
    (THOUGHTS, "\n <think>a</think>b<think>c</think>", "a", "b<think>c</think>", []),
    (THOUGHTS, "<think></think>\n\nYes", "", "Yes", []),
    (THOUGHTS, "<think>cut off ", "cut off", "", []),
    (THOUGHTS, "<think>almost</thi", "almost</thi", "", []),
    (THOUGHTS, "<thi", "", "<thi", []),
    (THOUGHTS, "Yes <think>no</think>", "", "Yes <think>no</think>", []),
    (THOUGHTS, "", "", "", []),
    (OPENED, "well</think>Yes", "well", "Yes", []),
    (OPENED, "\nwell", "well", "", []),
    (EMPTY_BLOCK, "<think>\n\n</think>\n\nYes", "", "Yes", []),
    (EMPTY_BLOCK, "<think>a</think>Yes", "", "<think>a</think>Yes", []),
    (EMPTY_BLOCK, "<think> </th", "", "<think> </th", []),
    (TOOLS, CALL, "", "", ["look_up"]),
    (TOOLS, f"I ask.\n{CALL}\n{SECOND}", "", "I ask.", ["look_up", "add"]),
    (TOOLS, f"{CALL} and then.", "", "and then.", ["look_up"]),
    (TOOLS, CALL.replace("look_up", "other"), "", CALL.replace("look_up", "other"), []),
    (TOOLS, CALL + SECOND.replace("add", "rm"), "", CALL + SECOND.replace("add", "rm"), []),
    (TOOLS, "<tool_call>{broken</tool_call> x", "", "<tool_call>{broken</tool_call> x", []),
    (TOOLS, f"a {CALL[:-5]}", "", f"a {CALL[:-5]}", []),
    (TOOLS, '{"name": "add", "arguments": {"a": 1}}', "", "", ["add"]),
    (TOOLS, '{"name": "add", "parameters": {"a": 1}}', "", "", ["add"]),
    (TOOLS, '[{"name": "add", "arguments": {}}, {"name": "look_up", "arguments": {}}]', "", "", ["add", "look_up"]),
    (TOOLS, '[TOOL_CALLS] [{"name": "add", "arguments": {}}]', "", "", ["add"]),
    (TOOLS, '<|python_tag|>{"name": "add", "parameters": {}}', "", "", ["add"]),
    (TOOLS, 'add{"a": 1}', "", "", ["add"]),
    (TOOLS, 'add[ARGS]{"a": 1}', "", "", ["add"]),
    (TOOLS, "add one", "", "add one", []),
    (TOOLS, '{"answer": 42}', "", '{"answer": 42}', []),
    (TOOLS, "[1, 2]", "", "[1, 2]", []),
    (TOOLS, "[link](x) <tool", "", "[link](x) <tool", []),
    (BOTH, f"<think>hm</think>Ask: {CALL}", "hm", "Ask:", ["look_up"]),
    (BOTH, f"<think>{CALL}</think>No.", CALL, "No.", []),
    (replace(BOTH, opens_reasoning=True), f"hm</think>{SECOND}", "hm", "", ["add"]),
]


def _parse(form, pieces):
    parser = ReplyParser(form)
    parts = [*map(parser.feed, pieces), parser.close()]
    calls = [call for part in parts for call in part.calls]
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts), calls, parser


@pytest.mark.parametrize(("form", "text", "reasoning", "content", "names"), CASES)
def test_divides_a_reply(form, text, reasoning, content, names):
    draw = random.Random(4)
    divisions = [[text], list(text)]
    for _ in range(8):
        cuts = sorted({0, len(text), *(draw.randrange(len(text) + 1) for _ in range(3))})
        divisions.append([text[a:b] for a, b in pairwise(cuts)])
    for pieces in divisions:
        parsed = _parse(form, pieces)
        assert parsed[:2] == (reasoning, content), pieces
        assert [call.name for call in parsed[2]] == names
        assert all(isinstance(json.loads(call.arguments), dict) for call in parsed[2])


def test_reasoning_ends_after_its_tag():
    assert _parse(THOUGHTS, ["<think>ab</think>", "c"])[3].reasoning_end == len("<think>ab</think>")
    assert _parse(OPENED, ["ab</th", "ink>c"])[3].reasoning_end == len("ab</think>")
    assert _parse(THOUGHTS, ["<think>ab"])[3].reasoning_end == len("<think>ab")
    assert _parse(THOUGHTS, ["ab"])[3].reasoning_end == 0


def test_content_is_not_kept_back_longer_than_needed():
    parser = ReplyParser(BOTH)
    assert [parser.feed(piece).content for piece in ("I", " see", " a < b", "!")] == ["I", " see", " a < b", "!"]
    parser = ReplyParser(THOUGHTS)
    assert [parser.feed(piece).reasoning for piece in ("<think>", "one", " two", " ", "three")] == [
        "",
        "one",
        " two",
        "",
        " three",
    ]


@pytest.mark.parametrize("model", ["plain", "thinking", "opening"])
def test_reasoning_is_that_of_the_next_prompt(models, model):
    admitted = models.find(model)
    prompt = admitted.render_prompt([{"role": "user", "content": "q"}])
    form = traits_of(admitted).describe_replies(prompt, None)
    reader, end = TurnReader(admitted.tokenizer, admitted.stop_ids), admitted.tokenizer.decode(prompt[-16:])
    draw = random.Random(5)
    for _ in range(300):
        text = "".join(draw.choices(["<think>", "</think>", "\n", " ", "a", "</thi", "nk>"], k=draw.randint(0, 7)))
        expected = reader.parse_reply(end, text.strip())
        opened = form.opens_reasoning or (form.writes_reasoning and text.strip().startswith("<think>"))
        if opened and "</think>" not in text:
            expected = {
                "content": "",
                "reasoning_content": text.strip().removeprefix("" if form.opens_reasoning else "<think>").strip(),
            }
        reasoning, content, _, _ = _parse(form, list(text))
        assert (reasoning, content) == (expected.get("reasoning_content", ""), expected["content"]), text
