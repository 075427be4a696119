"""A chat template that leaves out part of a dialogue is refused by name; one that writes it otherwise is not."""

import copy

import pytest

from lora_chat.data.encoding.bundled_templates import CHATML_TEMPLATE
from lora_chat.data.encoding.encode import encode_dialogue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.errors import DataError

CONTENT = "message['content']"
CALLS = (
    "{%- for call in message.tool_calls or [] -%}{{- '<call>' + call.function.name + ' ' + "
    "(call.function.arguments | tojson) -}}{%- endfor -%}"
)
WITH_CALLS = CHATML_TEMPLATE.replace("+ message['content'] +", "+ message['content'] -}}" + CALLS + "{{-").replace(
    "{{- '<|im_end|>\\n' -}}", "{{- '<|im_end|>\\n' -}}"
)
ARGUMENTS = {"city": "Oslo", "days": 3, "at": {"hours": [7, 9]}, "exact": False}


def call(arguments=ARGUMENTS):
    return {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def user(text="hi", **more):
    return {"role": "user", "content": text, **more}


def reply(text="yo", **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be so kind."}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": "rain"}
TALK = [SYSTEM, user("q"), reply("a"), user("q"), reply("hi")]
TOOLS = [user("q"), reply("", tool_calls=[call()]), RESULT, reply("Rain.")]


@pytest.fixture
def encode(tiny_tokenizer):
    def run(template, messages):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = template
        return encode_dialogue(parse_dialogue({"messages": messages}), tokenizer, {tokenizer.eos_token_id})

    return run


def only_if(condition, template=WITH_CALLS):
    """Return the template with messages written under a condition only."""
    start = "{%- for message in messages -%}"
    body, end = template.removeprefix(start).split("{%- endfor -%}{%- if add_generation_prompt")
    return f"{start}{{%- if {condition} -%}}{body}{{%- endif -%}}{{%- endfor -%}}{{%- if add_generation_prompt{end}"


def with_arguments(expression):
    return WITH_CALLS.replace("(call.function.arguments | tojson)", expression)


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (only_if("message.role != 'system'"), TALK, "leaves out the system message (message 1)"),
        (only_if("message.role != 'system' or loop.first"), [TALK[0], *TALK], "the system message (message 2)"),
        (only_if("message.role != 'system' or messages[-1].role == 'assistant'"), TALK, "the system message"),
        (only_if("message.role != 'user' or loop.index < 3"), TALK, "leaves out the text of the user in message 4"),
        (only_if("message.role != 'tool'"), TOOLS, "leaves out the tool result in message 3"),
        (only_if("message.role != 'tool' or message.content[0] == '{'"), TOOLS, "the tool result in message 3"),
        (only_if("message.role != 'assistant' or loop.last"), TALK, "leaves out the reply in message 3"),
        (WITH_CALLS.replace(CONTENT, CONTENT + "[:20]"), [user("word " * 20), reply()], "leaves out part of the text"),
        (with_arguments("''"), TOOLS, "the name of the argument 'city' of the tool call in message 2"),
        (with_arguments("(call.function.arguments.keys() | join)"), TOOLS, "the value of the argument 'city'"),
        (with_arguments("(call.function.arguments.values() | list | tojson)"), TOOLS, "the name of the argument"),
        (
            with_arguments("call.function.arguments.city + ' ' + (call.function.arguments.keys() | join)"),
            TOOLS,
            "the value of the argument 'days'",
        ),
        (WITH_CALLS, [user("I am here.", name="Ana"), reply()], "leaves out the name 'Ana' of message 1"),
        (WITH_CALLS, [*TOOLS[:2], {**RESULT, "name": "other"}, reply()], "leaves out the name 'other' of message 3"),
    ],
)
def test_refuses_what_the_template_leaves_out(encode, template, messages, reason):
    with pytest.raises(DataError) as caught:
        encode(template, messages)
    assert reason in str(caught.value)


def test_false_zero_and_empty_arguments_are_looked_for(encode):
    kept = "{%- for k, v in call.function.arguments.items() if v or k == 'city' -%}{{- k ~ '=' ~ v -}}{%- endfor -%}"
    template = WITH_CALLS.replace("+ ' ' + (call.function.arguments | tojson) -}}", "-}}" + kept)
    for value in (False, 0, []):
        arguments = {"city": "Oslo", "flag": value}
        with pytest.raises(DataError, match="argument 'flag'"):
            encode(template, [user(), reply("", tool_calls=[call(arguments)])])
        encode(WITH_CALLS, [user(), reply("", tool_calls=[call(arguments)])])
    encode(template, [user(), reply("", tool_calls=[call({"city": "Oslo", "flag": True})])])


@pytest.mark.parametrize(
    "expression",
    [
        f"{CONTENT} | trim",
        f"{CONTENT} | e | string",
        f"{CONTENT} | tojson",
        f"{CONTENT} | upper",
        f"({CONTENT}.split(' ') | join('_'))",
        f"({CONTENT} | indent(4))",
    ],
)
def test_accepts_texts_that_the_template_rewrites(encode, expression):
    history = f"(({expression}) if message.role != 'assistant' else {CONTENT})"
    messages = [
        {**SYSTEM, "content": 'say "<b>&\n\u00e9" twice'},
        user(" a < b\n& 'c' "),
        reply("ok"),
        user("?!"),
        reply(),
    ]
    assert encode(WITH_CALLS.replace(CONTENT, history), messages)


@pytest.mark.parametrize(
    "expression",
    [
        "(call.function.arguments | string)",
        "(call.function.arguments.items() | list | string)",
        "(call.function.arguments | tojson | e | string)",
        "(call.function.arguments | tojson(indent=2))",
        "(call.function.arguments | dictsort | list | string)",
    ],
)
def test_accepts_arguments_in_other_notations(encode, expression):
    assert encode(with_arguments(expression), TOOLS)
    quoted = {"text": 'it\'s \u00e9 "x"\n', "none": None, "empty": {}, "yes": True}
    assert encode(with_arguments(expression), [user(), reply("", tool_calls=[call(quoted)])])


@pytest.mark.parametrize(
    "message",
    [
        user("Ana: I am here.", name="Ana"),
        user("[ana] I am here.", name="Ana"),
        user("I am here.", name="user"),
        user("I am here.", name=""),
    ],
)
def test_names_that_say_nothing_new_are_accepted(encode, message):
    assert encode(WITH_CALLS, [message, reply()])
    assert encode(WITH_CALLS, TOOLS)


def test_names_that_the_template_writes_are_accepted(encode):
    template = WITH_CALLS.replace("message['role'] +", "message['role'] + (message.name or '') +")
    assert encode(template, [user("I am here.", name="Ana"), reply()])


def test_reasoning_may_be_left_out_of_earlier_turns(encode):
    thought = (
        "{%- if message.reasoning_content and loop.last -%}{{- '<think>' + message.reasoning_content + '</think>' -}}"
    )
    template = CHATML_TEMPLATE.replace("+ message['content']", "-}}" + thought + "{%- endif -%}{{- message['content']")
    rows = encode(template, [user(), reply("a", reasoning="hm"), user(), reply("b", reasoning="so")])
    assert len(rows) == 2
