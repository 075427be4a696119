"""The prompts of every known chat template pass the check of a server, with thoughts, tools and several turns."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import trl

from lora_chat.data.encoding.chat_template import install_template
from lora_chat.data.encoding.thinking_switch import find_switch, read_thinking, set_default, set_thinking
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.errors import DataError, IntegrityError
from lora_chat.pipeline import admission_prompts
from lora_chat.pipeline.admission_prompts import _check_prompt, _encode_prompts
from lora_chat.pipeline.choose_thinking import configure_thinking

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja") if not path.stem.endswith("_training"))
DEFAULT_NAMES = [name for name in ("qwen3", "deepseekv3", "gemma") if name in NAMES]
if os.environ.get("LORA_CHAT_ALL_BASES") != "1":
    NAMES = DEFAULT_NAMES

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
AT = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "It looks.", "parameters": AT}}]
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, thought=None, **more):
    return {"role": "assistant", "content": text, **({"reasoning_content": thought} if thought else {}), **more}


DIALOGUES = {
    "one": ([user("hi"), assistant("Hello.")], None),
    "several": ([user("q 1"), assistant("A pot."), user("q 2"), assistant("two\nlines")], None),
    "system": ([SYSTEM, user("q 1"), assistant("A pot."), user("q 2"), assistant("B")], None),
    "thoughts": ([user("q 1"), assistant("A pot.", "hm one"), user("q 2"), assistant("B", "hm two")], None),
    "inline": ([user("q 1"), assistant("<think>\nhm\n</think>\n\nA pot."), user("q 2"), assistant("B")], None),
    "mixed": ([user("q 1"), assistant("A pot."), user("q 2"), assistant("B", "hm two")], None),
    "tools": ([user("q 1"), assistant("A pot.")], TOOLS),
    "calls": (
        [
            user("weather?"),
            assistant("", tool_calls=[CALL]),
            {"role": "tool", "name": "look", "tool_call_id": "c1", "content": "azure"},
            assistant("It is azure."),
        ],
        TOOLS,
    ),
}


def tokenizer_with(tiny_tokenizer, name):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    text = (TEMPLATES / f"{name}.jinja").read_text()
    stops = ["<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "<turn|>", "<|eot|>", "</s>"]
    stops += ["<|end|>", "<|return|>", "<|END_OF_TURN_TOKEN|>", "<|endoftext|>", "<eos>", "[EOS]", "<|user|>"]
    used = [stop for stop in stops if stop in text] or [tokenizer.eos_token]
    tokenizer.add_special_tokens({"additional_special_tokens": used})
    tokenizer.chat_template = text
    install_template(tokenizer)
    return tokenizer, {tokenizer.convert_tokens_to_ids(stop) for stop in used} | {tokenizer.eos_token_id}


@pytest.mark.parametrize("thinking", [None, "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_trained_prompts_pass(tiny_tokenizer, name, thinking):
    tokenizer, stops = tokenizer_with(tiny_tokenizer, name)
    try:
        configure_thinking(tokenizer, thinking, stops, None)
    except DataError:
        pytest.skip("no switch")
    checked = 0
    for messages, tools in DIALOGUES.values():
        parsed = parse_dialogue({"messages": messages, "tools": tools})
        for prompt in _encode_prompts([parsed, replace(parsed, loss_on_prompts=True)], tokenizer, stops):
            for system in (None, "Be brief."):
                if system is None or messages[0] == SYSTEM:
                    _check_prompt(prompt, tokenizer, stops, system)
                    checked += 1
    assert checked or name not in DEFAULT_NAMES


@pytest.mark.parametrize("value", ["on", "off"])
def test_a_trained_default_is_the_default_of_the_server(tiny_tokenizer, value):
    tokenizer, stops = tokenizer_with(tiny_tokenizer, "qwen3")
    configure_thinking(tokenizer, "auto", stops, None)
    switch = find_switch(tokenizer)
    set_default(tokenizer, switch, value)
    set_thinking(tokenizer, replace(read_thinking(tokenizer), default=value))
    reply = assistant("A", "hm") if value == "on" else assistant("A")
    (prompt,) = _encode_prompts([parse_dialogue({"messages": [user("q"), reply]})], tokenizer, stops)
    _check_prompt(prompt, tokenizer, stops, None)
    other = "off" if value == "on" else "on"
    set_default(tokenizer, switch, other)  # a server whose template has the other default
    with pytest.raises(IntegrityError, match="other token ids than training"):
        _check_prompt(prompt, tokenizer, stops, None)


def test_finds_a_server_that_leaves_out_the_tools_or_the_system_message(tiny_tokenizer, monkeypatch):
    tokenizer, stops = tokenizer_with(tiny_tokenizer, "qwen3")
    render = admission_prompts.render_served_prompt
    monkeypatch.setattr(
        admission_prompts, "render_served_prompt", lambda t, s, system, m, tools, a: render(t, s, system, m, None, a)
    )
    messages, tools = DIALOGUES["tools"]
    (prompt,) = _encode_prompts([parse_dialogue({"messages": messages, "tools": tools})], tokenizer, stops)
    with pytest.raises(IntegrityError, match="other token ids"):
        _check_prompt(prompt, tokenizer, stops, None)
    prompts = list(_encode_prompts([parse_dialogue({"messages": DIALOGUES["system"][0]})], tokenizer, stops))
    monkeypatch.setattr(
        admission_prompts, "render_served_prompt", lambda t, s, system, m, tools, a: render(t, s, None, m, tools, a)
    )
    with pytest.raises(IntegrityError, match="other token ids"):
        _check_prompt(prompts[0], tokenizer, stops, "Be brief.")
    assert json.dumps(prompts[0].messages[0]) == json.dumps(SYSTEM)
