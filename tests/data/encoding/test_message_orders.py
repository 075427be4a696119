"""Unusual orders of messages: every trained reply follows the prompt of inference, or the template refuses."""

import random
import re

import pytest
from test_encode import make_merging_tokenizer
from test_known_templates import TRAINABLE, served, tokenizer_with

from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.encode import IGNORE_INDEX, encode_dialogue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.errors import DataError

ROLES = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}


@pytest.fixture(scope="module")
def base():
    return make_merging_tokenizer()


def in_order(order):
    """Return messages for letters: u(ser), a(ssistant), s(ystem), t(ool's result), c(all)."""
    messages = []
    for number, letter in enumerate(order):
        if letter == "c":
            messages.append({"role": "assistant", "content": "", "tool_calls": [CALL]})
        else:
            name = {"name": "look", "tool_call_id": "c1"} if letter == "t" else {}
            messages.append({"role": ROLES[letter], "content": f"{letter}w{number} text", **name})
    return messages


def random_orders(seed):
    chooser = random.Random(seed)
    return ["".join(chooser.choices("uuaasct", k=chooser.randint(1, 7))) for _ in range(8)]


def encode(tokenizer, stops, messages):
    return encode_dialogue(parse_dialogue({"messages": messages}), tokenizer, stops)


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_reply_follows_the_prompt_of_inference_in_any_order(base, name):
    tokenizer, stops = tokenizer_with(base, name)
    accepted = 0
    for order in ["usua", *random_orders(name)]:
        messages = in_order(order)
        try:
            rows = encode(tokenizer, stops, messages)
        except (DataError, ValueError):
            continue
        accepted += 1
        trained = set()
        for row in rows:
            begin = 0
            for count, end in row.reply_ends:
                start = row.labels.index(row.input_ids[end - 1], begin)
                if count > 1:
                    prompt = served(tokenizer, name, messages[: count - 1], None)
                    assert row.input_ids[: len(prompt)] == prompt, order
                    start = len(prompt)
                assert row.labels[start:end] == row.input_ids[start:end], order
                trained.add(count - 1)
                begin = end
            text = tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX])
            assert not re.search(r"[ust]w\d", text), order
        assert trained == {place for place, letter in enumerate(order) if letter in "ac"}
    assert accepted or "qwen3_" in name  # these want a user before every reply and no system message after the first


@pytest.mark.parametrize("order", ["aua", "saua", "uua", "uaa", "usua", "ssua", "uasua", "a", "suusaa"])
def test_chatml_trains_any_order_as_apply_chat_template_writes_it(tiny_tokenizer, order):
    messages = in_order(order)
    (row,) = encode(tiny_tokenizer, {tiny_tokenizer.eos_token_id}, messages)
    whole = render_ids(tiny_tokenizer, messages, add_generation_prompt=False)
    assert whole[: len(row.input_ids)] == row.input_ids
    assert len(row.reply_ends) == order.count("a")
    text = tiny_tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX])
    assert text == "".join(f"{m['content']}<|im_end|>" for m in messages if m["role"] == "assistant")


def test_text_before_a_call_is_trained_as_its_own_reply(base):
    tokenizer, stops = tokenizer_with(base, "qwen2_5")
    (row,) = encode(tokenizer, stops, in_order("uacta"))
    assert [count for count, _ in row.reply_ends] == [2, 3, 5]


@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_a_refused_order_offers_to_join_messages(base, name):
    tokenizer, stops = tokenizer_with(base, name)
    messages = in_order("uuaa")
    with pytest.raises(DataError, match=r"data\.turn_order=join"):
        encode(tokenizer, stops, messages)
    joined = parse_dialogue({"messages": messages}, turn_order="join")
    (row,) = encode_dialogue(joined, tokenizer, stops)
    text = tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX])
    assert "aw2 text\n\naw3 text" in text


def test_a_template_without_prompt_for_a_first_reply_is_refused(tiny_tokenizer):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ 'A:' if messages|length == 1 }}" + str(tiny_tokenizer.chat_template).replace(
        "<|im_start|>assistant", "<|im_start|>ASSISTANT"
    )
    with pytest.raises(DataError):
        encode(tokenizer, {tokenizer.eos_token_id}, in_order("aua"))
