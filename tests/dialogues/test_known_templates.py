"""Well-known chat templates, as TRL ships them: what is trained is the replies and their stop tokens, no more."""

import copy
import re
from pathlib import Path

import pytest
import trl

from lora_chat.dialogues.encoding import IGNORE_INDEX, encode_dialogue
from lora_chat.dialogues.messages import make_dialogue
from lora_chat.errors import DataError

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# What a reply opens with beside its text, and its stop token.
KNOWN = {
    "gemma": ("", "<end_of_turn>"),
    "gemma3": ("", "<end_of_turn>"),
    "gemma4": ("", "<turn|>"),
    "gemma4_v5": ("", "<turn|>"),
    "gptoss": ("<|channel|>final<|message|>", "<|return|>"),
    "lfm2": ("", "<|im_end|>"),
    "lfm2_2_5": ("", "<|im_end|>"),
    "llama3": ("", "<|eot_id|>"),
    "llama3_1": ("", "<|eot_id|>"),
    "llama3_2": ("", "<|eot_id|>"),
    "phi3": ("", "<|end|>"),
    "phi3_5": ("", "<|end|>"),
    "qwen2_5": ("", "<|im_end|>"),
    "qwen3": ("<think>\n\n</think>\n\n", "<|im_end|>"),
    "qwen3_5_nothink": ("", "<|im_end|>"),
    "qwen3_5_think": ("\n</think>\n\n", "<|im_end|>"),
    "qwen3_6": ("\n</think>\n\n", "<|im_end|>"),
    "qwen3_instruct_2507": ("", "<|im_end|>"),
    "qwen3_vl": ("", "<|im_end|>"),
}
REWRITE = {"gptoss", "phi3", "phi3_5", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"}
MARKS = re.compile(r"<\|?[A-Za-z_][A-Za-z0-9_]*\|?>")
TURNS = [("user", "你好, who?"), ("assistant", "A pot \U0001f3fa."), ("user", "q 2"), ("assistant", "two\nlines")]


def tokenizer_with(tiny_tokenizer, name):
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip("this version of TRL does not have it")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    marks = {m for m in MARKS.findall(tokenizer.chat_template) if "think" not in m and "tool" not in m}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(marks | {"<bos>"})})
    tokenizer.bos_token = "<bos>"
    return tokenizer


def as_dialogue(*turns):
    return make_dialogue({"messages": [{"role": role, "content": content} for role, content in turns]})


def supervised(tokenizer, rows):
    return [tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX]) for row in rows]


@pytest.mark.parametrize("name", KNOWN)
def test_one_turn_and_several_with_and_without_a_system_message(tiny_tokenizer, name):
    tokenizer = tokenizer_with(tiny_tokenizer, name)
    opening, stop = KNOWN[name]
    stops = {tokenizer.convert_tokens_to_ids(stop)}
    first, second = (opening + content + stop for role, content in TURNS if role == "assistant")
    assert supervised(tokenizer, encode_dialogue(as_dialogue(*TURNS[:2]), tokenizer, stops)) == [first]
    several = [first, second] if name in REWRITE else [first + second]
    rows = encode_dialogue(as_dialogue(*TURNS), tokenizer, stops)
    assert supervised(tokenizer, rows) == several
    assert all(row.input_ids.count(tokenizer.bos_token_id) <= 1 for row in rows)
    if name != "gemma":
        with_system = as_dialogue(("system", "Be brief."), *TURNS)
        rows = encode_dialogue(with_system, tokenizer, stops)
        assert supervised(tokenizer, rows) == several
        assert all("Be brief." in tokenizer.decode(row.input_ids) for row in rows)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "gptoss", "lfm2_2_5"])
def test_thoughts_are_trained_with_their_replies(tiny_tokenizer, name):
    tokenizer = tokenizer_with(tiny_tokenizer, name)
    stops = {tokenizer.convert_tokens_to_ids(KNOWN[name][1])}
    turns = [{"role": role, "content": content} for role, content in TURNS]
    turns[1]["reasoning_content"], turns[3]["reasoning_content"] = "hm one", "hm two"
    trained = supervised(tokenizer, encode_dialogue(make_dialogue({"messages": turns}), tokenizer, stops))
    assert len(trained) == 2
    for text, thought, reply in zip(trained, ("hm one", "hm two"), ("A pot \U0001f3fa.", "two\nlines"), strict=True):
        assert text.index(thought) < text.index(reply)
        assert text.endswith(reply + KNOWN[name][1])


@pytest.mark.parametrize("name", ["llama3_1", "qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_5_think", "lfm2_2_5"])
def test_calls_are_trained_and_results_are_not(tiny_tokenizer, name):
    tokenizer = tokenizer_with(tiny_tokenizer, name)
    stops = {tokenizer.convert_tokens_to_ids(KNOWN[name][1])}
    function = {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}}
    row = {
        "messages": [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]},
            {"role": "tool", "name": "look", "content": "azure"},
            {"role": "assistant", "content": "Blue."},
        ],
        "tools": [{"type": "function", "function": function}],
    }
    trained = "".join(supervised(tokenizer, encode_dialogue(make_dialogue(row), tokenizer, stops)))
    assert trained.index("look") < trained.index("Blue.")
    assert trained.count(KNOWN[name][1]) == 2
    assert "azure" not in trained


@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "llava_next"])
def test_templates_for_pictures_are_refused(tiny_tokenizer, name):
    tokenizer = tokenizer_with(tiny_tokenizer, name)
    with pytest.raises(DataError, match="template"):
        encode_dialogue(as_dialogue(*TURNS), tokenizer, set(tokenizer.all_special_ids))
