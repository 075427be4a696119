"""Well-known chat templates from TRL: only the replies and their stop tokens are trained.

Every reply is trained after exactly the prompt of inference, token for token.
"""

import copy
import json
import re
from functools import cache
from pathlib import Path

import pytest
import trl
from test_encode import make_merging_tokenizer

from lora_chat.data.encoding.chat_template import install_template, render_ids, render_texts
from lora_chat.data.encoding.encode import IGNORE_INDEX, encode_dialogue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.errors import DataError

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
INSTALLED = sorted(path.stem for path in TEMPLATES.glob("*.jinja") if not path.stem.endswith("_training"))

NO_REASONING = r"leaves out the reasoning of message \d"
NO_TOOLS = "leaves out the tools"
NO_CALLS = r"leaves out the tool call in message \d"
NO_ROLE = "Conversation roles must alternate"
BEFORE_THE_TAG = "leaves out everything before </think> in the text of message 2"
ANSWERS_WITHOUT = r"the base answers without reasoning, and message \d has reasoning; remove it"

# How a family writes replies: `stops` of its generation config, the first of them after a reply. A reply is the
# reasoning (`thought`, or `none` where there are none), `head`, and its text or its `call`, which ends with a stop
# token. `apart`: the cases in which every reply is a separate row. `refused`: the refused cases, with the reason.
PLAIN_TALK = {"calls": NO_CALLS, "tools": NO_TOOLS}
NO_TOOLS_AT_ALL = {"calls": NO_ROLE, "tools": NO_ROLE}
JSON_CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call><|im_end|>'
XML_CALL = "<tool_call>\n<function=look>\n<parameter=at>\nsky\n</parameter>\n</function>\n</tool_call>"
DEEPSEEK_CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n"
    '```json\n{"at": "sky"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>'
)
GEMMA_CALL = '<|tool_call>call:look{at:<|"|>sky<|"|>}<tool_call|>'
MUSE_CALL = (
    ' to=look<|message|><atem:function_calls>\n<atem:invoke name="look">\n'
    '<atem:parameter name="at">sky</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>'
)
LFM2_CALL = "<|tool_call_start|>[look(at='sky')]<|tool_call_end|><|im_end|>"

COHERE = {"stops": ["<|END_OF_TURN_TOKEN|>"], "refused": NO_TOOLS_AT_ALL}
DEEPSEEK = {
    "stops": ["<｜end▁of▁sentence｜>"],
    "none": "\n</think>\n\n",
    "thought": "{}\n</think>\n\n",
    "apart": "several thoughts mixed calls",
    "refused": {"tools": NO_TOOLS, "mention": BEFORE_THE_TAG},
}
GEMMA = {"stops": ["<end_of_turn>", "<eos>"], "refused": NO_TOOLS_AT_ALL}
GEMMA4 = {"stops": ["<turn|>", "<eos>", "<|tool_response>"], "call": GEMMA_CALL + "<|tool_response>"}
GEMMA4_THINKS = {**GEMMA4, "thought": "<|channel>thought\n{}\n<channel|>", "apart": "thoughts"}
LFM2 = {"stops": ["<|im_end|>"], "call": LFM2_CALL}
LFM2_THINKS = {**LFM2, "thought": "<think>{}</think>", "apart": "thoughts mention"}
LLAMA3 = {"stops": ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"]}
LLAMA3_CALLS = {**LLAMA3, "call": '{"name": "look", "parameters": {"at": "sky"}}<|eot_id|>'}
NEMOTRON = {
    "stops": ["<|im_end|>", "</s>"],
    "none": "</think>",
    "thought": "{}</think>",
    "call": f"\n{XML_CALL}\n<|im_end|>",
    "mentioning": "\n</think>\n\n",
    "apart": "several thoughts mixed calls tools mention",
}
NEMOTRON_LINES = {**NEMOTRON, "thought": "{}\n</think>\n", "call": f"{XML_CALL}\n<|im_end|>", "none_call": "</think>\n"}
PHI3 = {"stops": ["<|end|>", "<|endoftext|>", "<|assistant|>"], "refused": PLAIN_TALK}
QWEN = {"stops": ["<|im_end|>", "<|endoftext|>"], "call": JSON_CALL}
QWEN_THINKS = {
    **QWEN,
    "none": "\n</think>\n\n",
    "thought": "{}\n</think>\n\n",
    "call": XML_CALL + "<|im_end|>",
    "apart": "several thoughts mixed tools",
    "refused": {"mention": BEFORE_THE_TAG},
}
PICTURES = r"leaves out the text of message \d|str object has no element 0|'str object' has no attribute 'text'"

KNOWN = {
    "cohere": COHERE,
    "cohere2": {**COHERE, "behind": "<|END_RESPONSE|>"},
    "deepseek_r1_distill": {**DEEPSEEK, "refused": {**PLAIN_TALK, "mention": BEFORE_THE_TAG}},
    "deepseekv3": {**DEEPSEEK, "call": DEEPSEEK_CALL, "after_result": {"none": ""}},
    "diffusion_gemma": {**GEMMA4_THINKS, "after_result": {"before": "<|turn>model\n"}},
    "gemma": {**GEMMA, "refused": {**NO_TOOLS_AT_ALL, "system": "System role not supported"}},
    "gemma3": GEMMA,
    "gemma4": GEMMA4,
    "gemma4_v2": {**GEMMA4, "call": GEMMA_CALL + "<turn|>"},
    "gemma4_v3": GEMMA4,
    "gemma4_v4": GEMMA4,
    "gemma4_v5": GEMMA4_THINKS,
    "glm4moe": {
        "stops": ["<|user|>", "<|endoftext|>", "<|observation|>"],
        "none": "\n<think></think>\n",
        "thought": "\n<think>{}</think>\n",
        "call": "<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>sky</arg_value>\n</tool_call><|observation|>",
        "apart": "thoughts",
        "refused": {"mention": BEFORE_THE_TAG},
    },
    "gptoss": {
        "stops": ["<|return|>", "<|call|>", "<|endoftext|>"],
        "thought": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant",
        "head": "<|channel|>final<|message|>",
        "call": ' to=functions.look<|channel|>commentary json<|message|>{"at": "sky"}<|call|>',
        "apart": "several thoughts mixed tools mention",
    },
    "idefics3": {"stops": ["<end_of_utterance>"], "refused": PICTURES},
    "lfm2": {**LFM2, "refused": {"calls": NO_CALLS, "tools": NO_CALLS}},
    "lfm2_2_5": LFM2_THINKS,
    "lfm2_2_5_v2": LFM2_THINKS,
    "lfm2_2_5_vl": LFM2_THINKS,
    "lfm2_v2": LFM2,
    "llama3": {**LLAMA3, "refused": PLAIN_TALK},
    "llama3_1": LLAMA3_CALLS,
    "llama3_2": LLAMA3_CALLS,
    "llava_next": {"stops": ["<|im_end|>"], "refused": PICTURES},
    "muse_glimmer": {
        "stops": ["<|eot|>"],
        "thought": " to=self<|message|>{}<|eom|><|start|>assistant",
        "head": " to=user<|message|>",
        "call": MUSE_CALL,
    },
    "nemotron_3_5_lightning": NEMOTRON,
    "nemotron_3_nano": NEMOTRON_LINES,
    "nemotron_3_super": NEMOTRON_LINES,
    "nemotron_3_ultra": NEMOTRON,
    "phi3": PHI3,
    "phi3_5": PHI3,
    "qwen2_5": QWEN,
    "qwen2_5_vl": {"stops": QWEN["stops"], "refused": PLAIN_TALK},
    "qwen3": {
        **QWEN,
        "none": "<think>\n\n</think>\n\n",
        "thought": "<think>\n{}\n</think>\n\n",
        "apart": "several thoughts mixed calls tools",
        "refused": {"mention": BEFORE_THE_TAG},
    },
    "qwen3_5_nothink": {
        **QWEN,
        "call": XML_CALL + "<|im_end|>",
        "apart": "several tools",
        "refused": {"thoughts": ANSWERS_WITHOUT, "mention": "prompt at inference before message 2 differs"},
    },
    "qwen3_5_think": QWEN_THINKS,
    "qwen3_6": QWEN_THINKS,
    "qwen3_8": {**QWEN_THINKS, "apart": "", "refused": {}},
    "qwen3_instruct_2507": QWEN,
    "qwen3_vl": QWEN,
    "smolvlm": {"stops": ["<end_of_utterance>"], "refused": PICTURES},
}
TRAINABLE = [name for name, how in KNOWN.items() if how.get("refused") != PICTURES]

# In the vocabularies of these families, but not special tokens; anything else that looks like a tag is text.
NOT_SPECIAL = re.compile(r"</?(?:think|tool_call|tool_response)>|<｜(?:User|Assistant)｜>")
TAGS = re.compile(
    r"<\|[^<>\s']+>|<[a-z_]+\|>|<｜[^<>\s]+｜>|<[a-z]+_of_[a-z]+>|\[gMASK\]|<sop>|<image>|" + NOT_SPECIAL.pattern
)


@cache
def tokenizer_with(base, name):
    """Return a tokenizer with a known template and its tokens, and the stop ids."""
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip("this version of TRL does not have it")
    tokenizer = copy.deepcopy(base)
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    stops = KNOWN[name]["stops"]
    tags = set(TAGS.findall(tokenizer.chat_template)) | {*stops, "<bos>"}
    plain = {tag for tag in tags if NOT_SPECIAL.fullmatch(tag)}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(tags - plain)})
    tokenizer.add_tokens(sorted(plain))
    tokenizer.bos_token, tokenizer.eos_token = "<bos>", stops[0]
    return tokenizer, {tokenizer.convert_tokens_to_ids(stop) for stop in stops}


@pytest.fixture(scope="session", params=[pytest.param("bytes", marks=pytest.mark.slow), "merging"])
def base(request, tiny_tokenizer):
    # The second has tokens of several line feeds, which cross the borders between prompts and replies.
    return tiny_tokenizer if request.param == "bytes" else make_merging_tokenizer()


def user(text):
    return {"role": "user", "content": text}


def assistant(text, thought=None, *, calls=False):
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    thoughts = {"reasoning_content": thought} if thought else {}
    return {"role": "assistant", "content": text, **thoughts} | ({"tool_calls": [call]} if calls else {})


RESULT = {"role": "tool", "name": "look", "tool_call_id": "c1", "content": "azure"}
AT = {"type": "object", "properties": {"at": {"type": "string", "description": "where"}}, "required": ["at"]}
LOOK = {"type": "function", "function": {"name": "look", "description": "It looks.", "parameters": AT}}
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [user("q 1"), assistant("A pot."), user("q 2"), assistant("two\nlines")]
NOT_TRAINED = ("你好, who?", "q 1", "q 2", "Be brief.", "weather?", "azure", "It looks.")


def reply(how, text, thought=None, *, after_result=False):
    if after_result:
        how = how | how.get("after_result", {})
    opening = how["thought"].format(thought) if thought else how.get("none", "")
    return how.get("before", "") + opening + how.get("head", "") + text + how.get("behind", "") + how["stops"][0]


def call(how, thought=None):
    opening = how["thought"].format(thought) if thought else how.get("none_call", how.get("none", ""))
    return opening + how.get("call", "")


def rows_of(base, name, messages, tools=None):
    tokenizer, stops = tokenizer_with(base, name)
    return encode_dialogue(parse_dialogue({"messages": messages, "tools": tools}), tokenizer, stops)


def served(tokenizer, name, messages, tools):
    messages = copy.deepcopy(messages)
    for message in messages:
        if "reasoning_content" in message:
            message["thinking"] = message["reasoning_content"]
        for made in message.get("tool_calls", ()) if name == "deepseekv3" else ():
            made["function"]["arguments"] = json.dumps(made["function"]["arguments"])
    return render_ids(tokenizer, messages, add_generation_prompt=True, tools=tools)


def check(base, name, case, messages, expected, tools=None):
    """Check that exactly these replies are trained, each after the prompt of inference."""
    tokenizer, stops = tokenizer_with(base, name)
    rows = rows_of(base, name, messages, tools)
    ends = [(row, *end) for row in rows for end in row.reply_ends]
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    assert [count for _, count, _ in ends] == [place + 1 for place in places]
    labels = {id(row): [IGNORE_INDEX] * len(row.input_ids) for row in rows}
    trained = []
    for place, (row, _, end) in zip(places, ends, strict=True):
        prompt = served(tokenizer, name, messages[:place], tools)
        assert row.input_ids[: len(prompt)] == prompt
        ids = row.input_ids[len(prompt) : end]
        assert ids[-1] in stops
        labels[id(row)][len(prompt) : end] = ids
        trained.append(tokenizer.decode(ids))
    assert trained == expected
    assert not [text for text in trained for other in NOT_TRAINED if other in text]
    for row in rows:
        assert row.labels == labels[id(row)]
        assert row.reply_ends[-1][1] == len(row.input_ids)
        assert row.input_ids.count(tokenizer.bos_token_id) <= 1
    if "ĊĊ" not in base.get_vocab():  # a token of two line feeds parts more rows
        assert len(rows) == (len(expected) if case in KNOWN[name].get("apart", "").split() else 1)


def refusal(base, name, messages, tools=None):
    with pytest.raises(DataError) as caught:
        rows_of(base, name, messages, tools)
    return str(caught.value)


def test_knows_every_template_of_the_installed_trl():
    unknown = sorted(set(INSTALLED) - KNOWN.keys())
    assert not unknown, f"TRL {trl.__version__} ships templates of which KNOWN does not say how they write replies"


@pytest.mark.parametrize("name", TRAINABLE)
def test_trains_dialogues_of_one_and_several_turns(base, name):
    how = KNOWN[name]
    one = [user("你好, who?"), assistant("A pot \U0001f3fa.")]
    check(base, name, "one", one, [reply(how, "A pot \U0001f3fa.")])
    two = [reply(how, "A pot."), reply(how, "two\nlines")]
    check(base, name, "several", TALK, two)
    if "system" in how.get("refused", {}):
        assert how["refused"]["system"] in refusal(base, name, [SYSTEM, *TALK])
        return
    check(base, name, "several", [SYSTEM, *TALK], two)
    tokenizer, _ = tokenizer_with(base, name)
    rows = rows_of(base, name, [SYSTEM, *TALK])
    assert all("Be brief." in tokenizer.decode(row.input_ids) for row in rows)


@pytest.mark.parametrize("name", TRAINABLE)
def test_reasoning_is_trained_with_its_reply_or_refused(base, name):
    how = KNOWN[name]
    both = [TALK[0], assistant("A pot.", "hm one"), TALK[2], assistant("two\nlines", "hm two")]
    cases = {"thought": both[:2], "thoughts": both, "mixed": [*TALK[:3], both[3]]}
    if "thought" not in how:
        for messages in cases.values():
            assert re.search(how.get("refused", {}).get("thoughts", NO_REASONING), refusal(base, name, messages))
        return
    first, second = reply(how, "A pot.", "hm one"), reply(how, "two\nlines", "hm two")
    check(base, name, "thought", cases["thought"], [first])
    check(base, name, "thoughts", cases["thoughts"], [first, second])
    check(base, name, "mixed", cases["mixed"], [reply(how, "A pot."), second])


@pytest.mark.parametrize("name", TRAINABLE)
def test_leading_think_tags_are_reasoning_if_the_template_supports_it(base, name):
    how = KNOWN[name]
    one, two = "<think>\nhm one\n</think>\n\nA pot.", "<think>\nhm two\n</think>\n\ntwo"
    inline = [TALK[0], assistant(one), TALK[2], assistant(two)]
    if "thought" in how:
        apart = [TALK[0], assistant("A pot.", "hm one"), TALK[2], assistant("two", "hm two")]
        assert rows_of(base, name, inline) == rows_of(base, name, apart)
    elif "thoughts" in how.get("refused", {}):
        assert re.search(how["refused"]["thoughts"], refusal(base, name, inline))
    else:
        check(base, name, "inline", inline, [reply(how, one), reply(how, two)])


@pytest.mark.parametrize("name", TRAINABLE)
def test_reply_with_the_end_of_reasoning_is_trained_whole_or_refused(base, name):
    how = KNOWN[name]
    text = "The tag </think> ends it."
    messages = [TALK[0], assistant(text), TALK[2], assistant("two")]
    if "mention" in how.get("refused", {}):
        assert how["refused"]["mention"] in refusal(base, name, messages)
        return
    mentioning = how | {"none": how.get("mentioning", how.get("none", ""))}
    check(base, name, "mention", messages, [reply(mentioning, text), reply(how, "two")])


@pytest.mark.parametrize("name", TRAINABLE)
def test_calls_are_trained_and_results_are_not_or_the_calls_are_refused(base, name):
    how = KNOWN[name]
    refused = how.get("refused", {})
    asked = [user("weather?"), assistant("", calls=True), RESULT, assistant("Blue.")]
    more = [*asked, user("q 2"), assistant("Yes.")]
    expected = [call(how), reply(how, "Blue.", after_result=True), reply(how, "Yes.")]
    if "calls" in refused:
        assert re.search(refused["calls"], refusal(base, name, asked))
    else:
        check(base, name, "calls", asked, expected[:2])
    if "tools" in refused:
        assert re.search(refused["tools"], refusal(base, name, more, [LOOK]))
    else:
        check(base, name, "tools", more, expected, [LOOK])


@pytest.mark.parametrize("name", [name for name in TRAINABLE if "tools" not in KNOWN[name].get("refused", {})])
def test_reasoning_before_calls_and_after_results_is_trained_or_refused(base, name):
    how = KNOWN[name]
    messages = [user("weather?"), assistant("", "hm one", calls=True), RESULT, assistant("Blue.", "hm two")]
    if "thought" in how:
        trained = [call(how, "hm one"), reply(how, "Blue.", "hm two", after_result=True)]
        check(base, name, "both", messages, trained, [LOOK])
    else:
        reason = how.get("refused", {}).get("thoughts", NO_REASONING)
        assert re.search(reason, refusal(base, name, messages, [LOOK]))


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in TRAINABLE])
def test_refuses_multimodal_templates_that_need_content_in_parts(base, name):
    call_and_result = [user("weather?"), assistant("", calls=True), RESULT, assistant("Blue.")]
    for messages in ([*TALK[:2]], TALK, [SYSTEM, *TALK], call_and_result):
        assert re.search(KNOWN[name]["refused"], refusal(base, name, messages))


@pytest.mark.parametrize("name", ["phi3", "llama3"])
def test_tokens_that_absorb_following_blanks_change_nothing(base, name):
    """Check tokens like those of Phi 3's tokenizer: the prompts of inference and the replies stay the same."""
    from tokenizers import AddedToken

    tokenizer = copy.deepcopy(base)
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    tags = sorted({*TAGS.findall(tokenizer.chat_template), *KNOWN[name]["stops"], "<bos>"})
    tokenizer.add_tokens([AddedToken(tag, rstrip=True, special=True) for tag in tags], special_tokens=True)
    tokenizer.bos_token = "<bos>"
    stops = {tokenizer.convert_tokens_to_ids(stop) for stop in KNOWN[name]["stops"]}
    how = KNOWN[name]
    rows = encode_dialogue(parse_dialogue({"messages": TALK}), tokenizer, stops)
    trained = [[token for token in row.labels if token != IGNORE_INDEX] for row in rows]
    assert "".join(map(tokenizer.decode, trained)) == reply(how, "A pot.") + reply(how, "two\nlines")
    for row in rows:
        for place, _ in row.reply_ends:
            prompt = served(tokenizer, name, TALK[: place - 1], None)
            assert row.input_ids[: len(prompt)] == prompt


NAMED = {  # each begins and ends with blanks that the blocks of the joined template must not strip
    "default": "  {% if true %}\n D {% endif %}\n{% for m in messages %}{{ m.content }}\n{% endfor %}\n  ",
    "tool_use": "\n {% macro f(t) %}{{ t.function.name }}{% endmacro %}\n{% set x = 'T' %}"
    "{% for t in tools %}{{ f(t) + x }}\n{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}\n",
    "rag": "unused",
}
LOOK_TOOL = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


@pytest.mark.parametrize("ending", ["", "\n", "{%- if true %}z{% endif %}\n", " {# c #} \n\n"])
@pytest.mark.parametrize("tools", [None, LOOK_TOOL])
def test_named_templates_are_chosen_by_tools_as_in_transformers(tiny_tokenizer, ending, tools):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = {name: text + ending for name, text in NAMED.items()}
    messages = [user("a"), assistant("b")]
    expected = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    install_template(tokenizer)
    assert "unused" not in tokenizer.chat_template
    assert render_texts(tokenizer, [messages], add_generation_prompt=False, tools=tools) == [expected]
    assert tokenizer.apply_chat_template(messages, tools=tools, tokenize=False) == expected
