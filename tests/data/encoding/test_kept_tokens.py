"""Tokens in `data.keep_tokens` stay tokens in message text; all others stay plain characters."""

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from lora_chat.data.dialogue import Dialogue, Message
from lora_chat.data.encoding.chat_template import install_template, render_ids
from lora_chat.data.encoding.control_tokens import KEPT_TOKENS_FIELD, read_control_tokens, read_kept_tokens
from lora_chat.data.encoding.encode import encode_dialogue
from lora_chat.data.encoding.kept_tokens import TokenCounter, keep_tokens
from lora_chat.data.storage.cache import _digest_tokenizer
from lora_chat.errors import DataError
from lora_chat.inference.text_decoder import TextDecoder
from lora_chat.models.bundled import find_bundled_base

STOPS = (2,)
CHAT = [{"role": "user", "content": "a<order>b</order><|im_end|>"}]


@pytest.fixture
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(find_bundled_base("tiny-random"))
    tokenizer.add_tokens([AddedToken("<order>", special=True), AddedToken("</order>", special=True)])
    install_template(tokenizer)
    return tokenizer


def order_ids(tokenizer):
    return tokenizer.convert_tokens_to_ids(["<order>", "</order>"])


def test_kept_tokens_are_single_ids_and_control_tokens_stay_text(tokenizer):
    begin, end = order_ids(tokenizer)
    before = render_ids(tokenizer, CHAT, add_generation_prompt=True)
    keep_tokens(tokenizer, ["<order>", "</order>"], STOPS)
    after = render_ids(tokenizer, CHAT, add_generation_prompt=True)
    assert begin not in before and end not in before
    assert after.count(begin) == after.count(end) == 1
    assert before.count(2) == after.count(2) == 1  # the template's own; the one in the message is text
    assert tokenizer.decode(after) == tokenizer.decode(before)


def test_training_encodes_as_inference(tokenizer):
    keep_tokens(tokenizer, ["<order>"], STOPS)
    dialogue = Dialogue((Message("user", "a<order>b"), Message("assistant", "<order>tea")), 1)
    (row,) = encode_dialogue(dialogue, tokenizer, STOPS)
    prompt = render_ids(tokenizer, dialogue.as_dicts[:1], add_generation_prompt=True)
    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels[len(prompt)] == order_ids(tokenizer)[0]


@pytest.mark.parametrize("name", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<missing>", "a"])
def test_refuses_control_tokens_and_unknown_tokens(tokenizer, name):
    fix = "adapter.new_tokens" if name == "<missing>" else "remove it"
    with pytest.raises(DataError, match=fix):
        keep_tokens(tokenizer, ["<order>", name], STOPS)
    assert read_kept_tokens(tokenizer) == ()


def test_refuses_a_token_that_only_rendering_shows(tokenizer):
    tokenizer.add_tokens(["<<user>>"])
    tokenizer.chat_template = "{% for m in messages %}{{ '<<' + m['role'] + '>>' + m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="control token of the chat template"):
        keep_tokens(tokenizer, ["<<user>>"], STOPS)


def test_an_untrusted_setting_cannot_keep_control_tokens(tokenizer):
    tokenizer.init_kwargs[KEPT_TOKENS_FIELD] = ["<order>", "<|im_start|>", "<|im_end|>", 7, "<unknown>"]
    assert read_kept_tokens(tokenizer) == ("<order>",)
    assert {"<|im_start|>", "<|im_end|>"} <= set(read_control_tokens(tokenizer))


def test_kept_tokens_survive_saving_and_change_the_cache_key(tokenizer, tmp_path):
    before = _digest_tokenizer(tokenizer)
    keep_tokens(tokenizer, ["<order>"], STOPS)
    assert _digest_tokenizer(tokenizer) != before
    tokenizer.save_pretrained(tmp_path)
    assert read_kept_tokens(AutoTokenizer.from_pretrained(tmp_path)) == ("<order>",)


def test_counts_kept_tokens_and_tokens_written_as_characters(tokenizer):
    keep_tokens(tokenizer, ["<order>"], STOPS)
    messages = [{"role": "user", "content": "<order></order><order>"}, {"role": "assistant", "content": "<|im_end|>"}]
    assert TokenCounter(tokenizer, STOPS).count(messages) == ({"<order>": 2}, {"</order>": 1})


def test_a_reply_shows_kept_special_tokens(tokenizer):
    tokenizer.add_tokens(["<item>"])
    item = tokenizer.convert_tokens_to_ids("<item>")
    ids = [2, item, order_ids(tokenizer)[1], 70]
    assert TextDecoder(tokenizer).decode(ids) == "<item>" + tokenizer.decode([70])
    keep_tokens(tokenizer, ["</order>"], STOPS)
    assert TextDecoder(tokenizer).decode(ids) == "<item></order>" + tokenizer.decode([70])
