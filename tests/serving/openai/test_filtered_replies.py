"""The filter sees every part of a reply, and a blocked reply ends."""

import json
from dataclasses import replace

import pytest

from lora_chat.inference.continuous.request import GeneratedToken
from lora_chat.serving.openai.chat_completions import prepare_chat
from lora_chat.serving.openai.choice import Choice
from lora_chat.serving.reply_filter.filter_settings import make_filter_settings

ADDRESS = "anna.berger@example-mail.ch"
TOOL = {"type": "function", "function": {"name": "send", "parameters": {"type": "object"}}}
REPLIES = {
    "content": ("plain", f"Write to {ADDRESS} today."),
    "reasoning": ("thinking", f"<think>It is {ADDRESS} here.</think>Ask her."),
    "calls": ("tools", f'Done. <tool_call>{{"name": "send", "arguments": {{"to": "{ADDRESS}"}}}}</tool_call>'),
}


def _generate(models, options, model, text, **fields):
    body = {"model": model, "messages": [{"role": "user", "content": "q"}], **fields}
    _, task = prepare_chat(json.dumps(body).encode(), models, options)
    choice, deltas = Choice(0, task), []
    for token in models.find(model).tokenizer.encode(text, add_special_tokens=False):
        deltas.append(choice.feed(GeneratedToken(token, 0.0)))
        if choice.finish:
            break
    else:
        deltas.append(choice.end("stop"))
    texts = ["".join(getattr(delta, name) for delta in deltas) for name in ("content", "reasoning")]
    return (*texts, [call.arguments for delta in deltas for call in delta.calls], choice)


@pytest.mark.parametrize("part", list(REPLIES))
def test_each_part_is_redacted(models, filtered, part):
    model, text = REPLIES[part]
    fields = {"tools": [TOOL]} if part == "calls" else {}
    content, reasoning, calls, choice = _generate(models, filtered, model, text, **fields)
    assert ADDRESS not in content + reasoning + "".join(calls)
    expected = {
        "content": ("Write to [E-MAIL] today.", "", []),
        "reasoning": ("Ask her.", "It is [E-MAIL] here.", []),
        "calls": ("Done.", "", ['{"to": "[E-MAIL]"}']),
    }
    assert (content, reasoning, calls) == expected[part]
    assert choice.finish == ("tool_calls" if part == "calls" else "stop")
    assert dict(choice.filter.counts) == {"personal_data": 1}


@pytest.mark.parametrize("part", list(REPLIES))
def test_a_blocked_reply_ends(models, server_options, part):
    model, text = REPLIES[part]
    fields = {"tools": [TOOL]} if part == "calls" else {}
    blocking = replace(server_options, reply_filter=make_filter_settings("block"))
    content, reasoning, calls, choice = _generate(models, blocking, model, text, **fields)
    assert ADDRESS not in content + reasoning
    assert calls == []
    assert choice.finish == "content_filter"
    assert "Ask" not in content


def test_without_a_filter_nothing_changes(models, server_options):
    content, *_ = _generate(models, server_options, *REPLIES["content"])
    assert content == REPLIES["content"][1]


@pytest.mark.parametrize("part", list(REPLIES))
def test_stop_texts_do_not_find_hidden_values(models, filtered, part):
    model, text = REPLIES[part]
    fields = {"tools": [TOOL]} if part == "calls" else {}
    plain = _generate(models, filtered, model, text, **fields)
    probed = _generate(models, filtered, model, text, stop=["berger@", "example-mail"], **fields)
    assert probed[:3] == plain[:3] and probed[3].finish == plain[3].finish


@pytest.mark.parametrize(
    ("part", "stop", "content", "reasoning"),
    [
        ("content", " today", "Write to [E-MAIL]", ""),
        ("content", "L] t", "Write to [E-MAI", ""),
        ("reasoning", " here", "", "It is [E-MAIL]"),
        ("reasoning", "sk h", "A", "It is [E-MAIL] here."),
    ],
)
def test_stop_texts_end_filtered_replies(models, filtered, part, stop, content, reasoning):
    result = _generate(models, filtered, *REPLIES[part], stop=stop)
    assert (result[0], result[1], result[3].finish) == (content, reasoning, "stop")


def test_a_text_that_may_begin_a_stop_text_is_sent_before_a_block(models, server_options):
    blocking = replace(server_options, reply_filter=make_filter_settings("block"))
    content, _, _, choice = _generate(models, blocking, *REPLIES["content"], stop="to nobody")
    assert (content, choice.finish) == ("Write to ", "content_filter")
