"""The switch of chat templates for thoughts: prompts, labels and the default that other programs find."""

import copy
from pathlib import Path

import pytest
import trl
from test_encode import CHATML

from lora_chat.config.data import DataSection
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.encode import IGNORE_INDEX, encode_dialogue
from lora_chat.data.encoding.thinking_switch import (
    Thinking,
    find_switch,
    forced_default,
    iterate_variants,
    set_default,
    set_thinking,
)
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.storage.ledger import Ledger
from lora_chat.errors import DataError
from lora_chat.models.identity import ThinkingIdentity
from lora_chat.pipeline.choose_thinking import configure_thinking, decide_default, describe_thinking

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
QUESTION = {"role": "user", "content": "q"}
OFF, ON = "<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_start|>assistant\n"
CONTENT_THOUGHTS = (  # thoughts stay in the content, as in SmolLM3's template
    "{%- set mode = 'think' if enable_thinking is not defined or enable_thinking else 'no' -%}"
    "{{- '<|im_start|>system\n/' + mode + '<|im_end|>\n' -}}"
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' -}}"
    "{%- if m.role == 'assistant' and mode == 'no' -%}{{- '<think>\n\n</think>\n' -}}{%- endif -%}"
    "{{- m.content + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- if mode == 'no' -%}{{- '<think>\n\n</think>\n' -}}{%- endif -%}{%- endif -%}"
)


@pytest.fixture
def qwen(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    return tokenizer


def dialogue(*replies):
    messages = []
    for reply in replies:
        messages += [QUESTION, {"role": "assistant", "content": reply}]
    return parse_dialogue({"messages": messages})


def encode(tokenizer, mode, *replies):
    """Return the prompt and the trained text of each row."""
    set_thinking(tokenizer, Thinking(find_switch(tokenizer), mode) if mode else None)
    rows = encode_dialogue(dialogue(*replies), tokenizer, [tokenizer.eos_token_id])
    result = []
    for row in rows:
        begin = next(i for i, label in enumerate(row.labels) if label != IGNORE_INDEX)
        assert row.labels[begin:] == row.input_ids[begin:]
        result.append((tokenizer.decode(row.input_ids[:begin]), tokenizer.decode(row.input_ids[begin:])))
    return result


def prompt(tokenizer, *, thinking):
    ids = tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True, enable_thinking=thinking)
    return tokenizer.decode(ids["input_ids"])


@pytest.mark.parametrize(
    ("mode", "reply", "switch", "trained"),
    [
        ("auto", "answer", False, "answer<|im_end|>"),
        ("auto", "<think>\nhm\n</think>\n\nanswer", True, "<think>\nhm\n</think>\n\nanswer<|im_end|>"),
        ("auto", "<think>\n\n</think>\n\nanswer", False, "answer<|im_end|>"),
        ("off", "answer", False, "answer<|im_end|>"),
        ("on", "answer", False, "answer<|im_end|>"),  # the block that the template inserts carries no loss
        ("on", "<think>\nhm\n</think>\n\nanswer", True, "<think>\nhm\n</think>\n\nanswer<|im_end|>"),
        (None, "answer", True, "<think>\n\n</think>\n\nanswer<|im_end|>"),  # as earlier versions did
    ],
)
def test_each_reply_is_trained_after_the_prompt_of_its_kind(qwen, mode, reply, switch, trained):
    assert encode(qwen, mode, reply) == [(prompt(qwen, thinking=switch), trained)]


def test_a_dialogue_with_both_kinds_of_replies_uses_both_positions(qwen):
    rows = encode(qwen, "auto", "<think>hm</think>first", "second")
    assert rows[0][0].endswith(ON) and rows[0][1] == "<think>\nhm\n</think>\n\nfirst<|im_end|>"
    assert rows[1][0].endswith(OFF) and rows[1][1] == "second<|im_end|>"


def test_refuses_thoughts_with_the_switch_off(qwen):
    with pytest.raises(DataError, match=r"message 2 has reasoning; remove it, or use data\.thinking: auto"):
        encode(qwen, "off", "<think>\nhm\n</think>\n\nanswer")


def test_thoughts_in_the_content_decide_too(qwen):
    qwen.chat_template = CONTENT_THOUGHTS
    without = "<|im_start|>system\n/no<|im_end|>\n<|im_start|>user\nq<|im_end|>\n" + ON + "<think>\n\n</think>\n"
    assert encode(qwen, "auto", "a")[0] == (without, "a<|im_end|>")
    assert encode(qwen, "auto", "<think>\n\n</think>\na")[0] == (without, "a<|im_end|>")
    before, trained = encode(qwen, "auto", "<think>x</think>a")[0]
    assert "/think<" in before and before.endswith(ON) and trained == "<think>x</think>a<|im_end|>"


@pytest.mark.parametrize(
    ("thoughts", "mode", "default", "end"),
    [
        (0, "auto", "off", OFF),
        (9, "auto", "on", ON),
        (4, "auto", None, ON),
        (4, "off", "off", OFF),
        (4, "on", "on", ON),
    ],
)
def test_the_data_decides_the_default_of_every_program(qwen, thoughts, mode, default, end):
    before = qwen.chat_template
    configure_thinking(qwen, mode, [qwen.eos_token_id], None)
    stored = decide_default(qwen, Ledger(replies=9, thoughts=thoughts), None)
    assert stored == ThinkingIdentity(variable="enable_thinking", mode=mode, default=default)
    assert qwen.decode(render_ids(qwen, [QUESTION], add_generation_prompt=True)).endswith(end)
    assert prompt(qwen, thinking=True).endswith(ON) and prompt(qwen, thinking=False).endswith(OFF)
    assert qwen.chat_template == before or qwen.chat_template in iterate_variants(before)
    assert (qwen.chat_template == before) == (end == ON)
    with forced_default(qwen):  # llama.cpp passes the variable always
        forced = prompt(qwen, thinking=True)
    assert forced.endswith(OFF if default == "off" else ON)
    assert str(thoughts) in describe_thinking(stored, Ledger(replies=9, thoughts=thoughts))


def test_a_second_default_replaces_the_first(qwen):
    before, switch = qwen.chat_template, find_switch(qwen)
    set_default(qwen, switch, "off")
    set_default(qwen, switch, "on")
    assert qwen.chat_template == before


@pytest.mark.parametrize("name", ["chatml", "gptoss", "qwen3_instruct_2507"])
def test_refuses_the_setting_for_a_template_without_a_switch(qwen, name):
    qwen.chat_template = CHATML if name == "chatml" else (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    assert find_switch(qwen) is None
    configure_thinking(qwen, "auto", [qwen.eos_token_id], None)
    assert decide_default(qwen, Ledger(replies=1), None) is None
    known = "it has reasoning_effort" if name == "gptoss" else "data.thinking: on needs a chat template with a switch"
    with pytest.raises(DataError, match=known):
        configure_thinking(qwen, "on", [qwen.eos_token_id], None)


@pytest.mark.parametrize(("written", "read"), [(True, "on"), (False, "off"), ("auto", "auto"), (None, None)])
def test_booleans_of_yaml_are_positions(written, read):
    assert DataSection(train="x", thinking=written).thinking == read
