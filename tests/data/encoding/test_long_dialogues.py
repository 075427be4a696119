# ruff: noqa: E501
"""One rendering of a long dialogue gives the same texts as a rendering of each beginning, or is not used."""

import copy
import os
from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encode import make_merging_tokenizer
from test_known_templates import INSTALLED, TEMPLATES

from lora_chat.data.dialogue import Dialogue, Message
from lora_chat.data.encoding.bundled_templates import CHATML_TEMPLATE, PLAIN_TEMPLATE
from lora_chat.data.encoding.chat_template import render_jobs
from lora_chat.data.encoding.encode import DialogueEncoder
from lora_chat.data.encoding.prefix_rendering import render_with_shared_prefixes
from lora_chat.data.encoding.render_requests import RenderJob, split_into_requests
from lora_chat.data.encoding.stepwise_render import find_stepwise_render
from lora_chat.errors import DataError

SOURCES = {"chatml": CHATML_TEMPLATE, "plain": PLAIN_TEMPLATE} | {
    name: (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8") for name in INSTALLED
}
ONE_BY_ONE = ["qwen3", "gptoss", "deepseekv3", "glm4moe", "nemotron_3_nano", "gemma4"]
TOGETHER = [
    "chatml",
    "plain",
    "llama3",
    "llama3_1",
    "llama3_2",
    "gemma",
    "gemma3",
    "phi3",
    "qwen2_5",
    "qwen3_instruct_2507",
]
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
LOOK = {"type": "function", "function": {"name": "look", "description": "It looks.", "parameters": {"type": "object"}}}
LOOP = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


TALK = [message for i in range(5) for message in (user(f"q {i}"), assistant(f"a {i}"))]


@pytest.fixture(scope="module")
def tokenizer():
    return make_merging_tokenizer("<|eot_id|>")


def with_source(tokenizer, source):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = source
    return changed


def variables(messages, tools=None):
    return {
        "messages": messages,
        "tools": tools,
        "documents": None,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
    }


find_render = lru_cache(maxsize=None)(find_stepwise_render)
"""The same with room for every template, which are more than the package keeps."""


def render_pieces(source, messages, tools=None, *, add_generation_prompt=True):
    """Return the text of each beginning from the pieces, by its number of messages; None if there is no proof."""
    render = find_render(source)
    if render is None:
        return None
    try:
        least, before, after, *bodies = render(
            **variables(messages, tools), add_generation_prompt=add_generation_prompt
        )
    except Exception:
        return None
    skipped = len(messages) - len(bodies)
    first = max(int(least), skipped)
    return {k: before + "".join(bodies[: k - skipped]) + after for k in range(first, len(messages) + 1)}


def render_each(source, messages, numbers, tools=None, *, add_generation_prompt=True):
    from transformers.utils.chat_template_utils import _compile_jinja_template

    render = _compile_jinja_template(source).render
    return {k: render(**variables(messages[:k], tools), add_generation_prompt=add_generation_prompt) for k in numbers}


TEXTS = st.sampled_from(
    ["hi", " x ", "<think>t</think>", "", "[INST]", "a\n\nb", "user", "<tool_response>r</tool_response>"]
)
GROUPS = st.one_of(
    st.tuples(TEXTS, TEXTS).map(lambda texts: [user(texts[0]), assistant(texts[1])]),
    TEXTS.map(
        lambda text: [
            user(text),
            assistant("", tool_calls=[CALL]),
            {"role": "tool", "name": "look", "content": text},
            assistant("b"),
        ]
    ),
    TEXTS.map(lambda text: [user(text), assistant("c", reasoning_content="why", thinking="why")]),
)
DIALOGUES = st.tuples(st.booleans(), st.lists(GROUPS, min_size=1, max_size=5)).map(
    lambda parts: [{"role": "system", "content": "be brief"}] * parts[0] + [m for group in parts[1] for m in group]
)


@settings(deadline=None, max_examples=300 if os.environ.get("LORA_CHAT_ALL_BASES") else 2, derandomize=True)
@given(messages=DIALOGUES, tools=st.sampled_from([None, [LOOK]]), follows=st.booleans())
def test_pieces_of_every_known_template_are_the_texts_of_the_beginnings(messages, tools, follows):
    for name, source in SOURCES.items():
        pieces = render_pieces(source, messages, tools, add_generation_prompt=follows)
        if pieces is not None:
            assert pieces == render_each(source, messages, pieces, tools, add_generation_prompt=follows), name


@pytest.mark.parametrize("name", TOGETHER)
def test_common_templates_need_one_rendering(name):
    if name not in SOURCES:
        pytest.skip("this version of TRL does not have it")
    assert render_pieces(SOURCES[name], TALK)


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_templates_that_rewrite_history_are_rendered_one_by_one(name):
    if name not in SOURCES:
        pytest.skip("this version of TRL does not have it")
    assert render_pieces(SOURCES[name], TALK) is None


LOOKAHEAD = {
    "last": LOOP.replace("m.content", "(m.content if loop.last else '')"),
    "last by key": LOOP.replace("m.content", "(m.content if loop['last'] else '')"),
    "length": LOOP.replace("m.content", "m.content + loop.length | string"),
    "next": LOOP.replace("m.content", "m.content + (loop.nextitem.role if loop.nextitem is defined else '')"),
    "from the end": LOOP.replace("m.content", "m.content + loop.revindex | string"),
    "count": LOOP.replace("m.content", "m.content + messages | length | string"),
    "count in a variable": "{% set n = messages | length %}{{ n }}" + LOOP,
    "last message": "{{ messages[-1].content }}" + LOOP,
    "last message by filter": "{{ (messages | last).content }}" + LOOP,
    "message by index": LOOP.replace("m.content", "m.content + (messages[loop.index].role if messages[loop.index] else '')"),
    "slice from the end": LOOP.replace("in messages", "in messages[:-1]"),
    "every second": LOOP.replace("in messages", "in messages[::2]"),
    "reversed": LOOP.replace("in messages", "in messages[::-1]"),
    "filtered": LOOP.replace("in messages", "in messages | selectattr('role', 'equalto', 'user')"),
    "condition": LOOP.replace("in messages", "in messages if m.role == 'user'"),
    "copy": "{% set all = messages %}{% for m in all %}{{ m.content }}{{ all | length }}{% endfor %}",
    "joined": "{{ messages | map(attribute='content') | join }}" + LOOP,
    "state of an earlier loop": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}" + LOOP,
    "state in a later loop": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    + LOOP.replace("m.content", "m.content + ns['n'] | string"),
    "state after the loop": "{% set ns = namespace(n=0) %}{% for m in messages %}{{ m.content }}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "state in a macro": "{% set ns = namespace(n=0) %}{% macro count(m) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endmacro %}"
    + LOOP + "{{ count(1) }}{{ ns.n }}",
    "state behind another name": "{% set ns = namespace(n=0) %}{% set other = ns %}{% for m in messages %}{{ m.content }}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ other.n }}",
    "macro with the messages": "{% macro count(all) %}{{ all | length }}{% endmacro %}{{ count(messages) }}" + LOOP,
    "macro that reads the messages": "{% macro count() %}{{ messages | length }}{% endmacro %}{{ count() }}" + LOOP,
    "macro with the loop": "{% macro f(loop_) %}{{ loop_.last }}{% endmacro %}" + LOOP.replace("m.content", "m.content + f(loop)"),
    "two loops": LOOP + LOOP,
    "loop in a loop": "{% for n in [1, 2] %}" + LOOP + "{% endfor %}",
    "loop in a block": "{% set text %}" + LOOP + "{% endset %}{{ text | length }}",
    "early end": LOOP.replace("{{", "{% if m.role == 'assistant' %}{% break %}{% endif %}{{", 1),
    "else": LOOP.replace("{% endfor", "{% else %}none{% endfor"),
    "cycler": "{% set c = cycler('a', 'b') %}" + LOOP.replace("m.content", "m.content + c.next()") + "{{ c.next() }}",
    "joiner": "{% set j = joiner(',') %}" + LOOP.replace("m.content", "m.content + j()") + "{{ j() }}",
    "a generator": "{% set g = [1, 2, 3] | map('string') %}" + LOOP.replace("m.content", "m.content + (g | first)") + "{{ g | list }}",
    "random": LOOP.replace("m.content", "([1, 2, 3] | random | string)"),
    "random by name": LOOP.replace("m.content", "([[1, 2, 3]] | map('random') | join)"),
    "method": "{{ messages.__len__() }}" + LOOP,
    "attribute filter": LOOP.replace("m.content", "(loop | attr('last') | string)"),
    "messages replaced": "{% set messages = messages | list %}" + LOOP + "{{ messages | length }}",
    "recursive": LOOP.replace("in messages", "in messages recursive"),
    "compared": LOOP + "{{ 'empty' if messages == [] else (messages == messages[:2]) }}",
    "unpacked in a namespace": "{% set ns = namespace(**{'n': messages | length}) %}" + LOOP + "{{ ns.n }}",
    "unpacked message in a namespace": "{% set ns = namespace(*[messages[-1]]) %}" + LOOP + "{{ ns.content }}",
    "unpacked in an inner namespace": "{% set ns = namespace() %}{% set ns.x = namespace(**{'n': messages | length}) %}" + LOOP + "{{ ns.x.n }}",
    "changed": LOOP.replace("m.content", "m.content + loop.changed(loop.nextitem) | string"),
    "previous of the next": LOOP.replace("m.content", "m.content + (loop.previtem or loop.nextitem) | string"),
    "end of an end": "{% set rest = messages[1:] %}{{ rest[-1].content }}" + LOOP,
    "end of a slice": "{{ messages[1:][-1].content }}" + LOOP,
    "filtered from outside": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}" + LOOP,
    "reverse": "{{ (messages | reverse | first).content }}" + LOOP,
    "grouped": "{% for g in messages | groupby('role') %}{{ g.list | length }}{% endfor %}" + LOOP,
    "list in a list": "{% set all = [messages] %}{{ all[0] | length }}" + LOOP,
    "list in a pair": "{% set all, x = messages, 1 %}{{ all | length }}" + LOOP,
    "list in a namespace": "{% set ns = namespace(all=messages) %}{{ ns.all | length }}" + LOOP,
    "default of a macro": "{% macro f(all=messages) %}{{ all | length }}{% endmacro %}{{ f() }}" + LOOP,
    "recursive macro": "{% macro f(i) %}{% if messages[i] is defined %}{{ f(i + 1) }}{% else %}{{ i }}{% endif %}{% endmacro %}{{ f(0) }}" + LOOP,
    "macro in the loop": LOOP.replace("{{", "{% macro f() %}{{ loop.last }}{% endmacro %}{{ f() }}{{", 1),
    "numbers of messages": "{% for i in range(messages | length) %}{{ messages[i].content }}{% endfor %}",
    "time and a count": LOOP + "{{ strftime_now('%Y') ~ messages | length }}",
    "argument of a filter": "{{ '%s' | format(messages | length) }}" + LOOP,
    "argument of a test": LOOP.replace("m.content", "m.content + (1 is eq(messages | length)) | string"),
    "list of an inner loop": LOOP.replace("{% endfor", "{% for x in [loop.last] %}{{ x }}{% endfor %}{% endfor", 1),
    "condition of an inner loop": LOOP.replace("{% endfor", "{% for x in [1] if loop.last %}x{% endfor %}{% endfor", 1),
    "else of an inner loop": LOOP.replace("{% endfor", "{% for x in [] %}{% else %}{{ loop.last }}{% endfor %}{% endfor", 1),
    "exception at the end": LOOP.replace("{{", "{% if loop.last %}{{ raise_exception('end') }}{% endif %}{{", 1),
    "pair in a namespace": "{% set ns = namespace(n=0) %}" + LOOP.replace("{{", "{% set ns.n, x = loop.index, 1 %}{{", 1) + "{{ ns.n }}",
    "block in a namespace": "{% set ns = namespace(n='') %}" + LOOP.replace("{{", "{% set ns.n %}{{ loop.index }}{% endset %}{{", 1) + "{{ ns.n }}",
    "default in place of an error": LOOP.replace("m.content", "m.content + (loop.nextitem | default({})) | string"),
    "attribute by name": "{% set ns = namespace(n=0) %}" + LOOP.replace("{{", "{% set ns.n = ns.n + 1 %}{{", 1) + "{{ ns['n' ~ ''] }}",
    "filtered block": "{% filter upper %}" + LOOP + "{% endfilter %}",
    "called block": "{% macro f() %}{{ caller() | length }}{% endmacro %}{% call f() %}" + LOOP + "{% endcall %}",
    "with": "{% with all = messages %}{{ all | length }}{% endwith %}" + LOOP,
    "contained": LOOP.replace("m.content", "m.content + ('x' if m in messages[2:] else 'y')"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOKAHEAD)
def test_a_template_that_may_look_ahead_gives_no_pieces(name):
    assert render_pieces(LOOKAHEAD[name], TALK) is None


STABLE = {
    "state in one loop": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m.content }}{% endfor %}",
    "variables of an iteration": "{% set x = 'o' %}{% for m in messages %}{{ x }}{% set x = m.content %}{{ x }}{% endfor %}{{ x }}",
    "system before the loop": "{% if messages[0].role == 'user' %}{{ messages[0].content }}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "checks before the loop": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('order') }}{% endif %}{% endfor %}" + LOOP,
    "lookahead that is not reached": LOOP.replace("m.content", "(m.content if m.role != 'tool' or loop.last else '')"),
    "equal loops in two branches": "{% if tools %}" + LOOP + "{% else %}" + LOOP + "{% endif %}end",
    "inner loops": LOOP.replace("m.content", "m.content").replace(
        "{% endfor", "{% for c in m.content %}{{ c if loop.last else '' }}{% endfor %}{% endfor", 1
    ),
    "skipped messages": LOOP.replace("{{", "{% if m.content == 'q 1' %}{% continue %}{% endif %}{{", 1),
    "another variable": LOOP.replace("m.content", "(m.content if not enable_thinking else '')"),
    "text after every message": LOOP + "{% if not add_generation_prompt %}<end>{% endif %}",
}  # fmt: skip


@pytest.mark.parametrize("name", STABLE)
@pytest.mark.parametrize("follows", [False, True])
def test_a_template_that_cannot_look_ahead_gives_the_texts_of_the_beginnings(name, follows):
    pieces = render_pieces(STABLE[name], TALK, add_generation_prompt=follows)
    assert pieces is not None
    assert len(pieces) >= len(TALK) - 1
    assert pieces == render_each(STABLE[name], TALK, pieces, add_generation_prompt=follows)


@pytest.mark.parametrize("source", [STABLE["state in one loop"], LOOKAHEAD["last"], CHATML_TEMPLATE])
def test_jobs_have_the_same_texts_together_and_one_by_one(tokenizer, source):
    changed = with_source(tokenizer, source)
    chats = [TALK[:k] for k in range(1, len(TALK) + 1)]
    (together,) = render_jobs(changed, [RenderJob(chats, True)])
    assert together == [render_jobs(changed, [RenderJob([chat], True)])[0][0] for chat in chats]


def test_a_refusal_of_a_beginning_stays_the_reason(tokenizer):
    changed = with_source(
        tokenizer, LOOP.replace("{{", "{% if m.content == 'a 3' %}{{ raise_exception('no 3') }}{% endif %}{{", 1)
    )
    jobs = [RenderJob([TALK[:k] for k in range(1, 9)], True), RenderJob([TALK[:k] for k in range(1, 8)], True)]
    refused, accepted = render_jobs(changed, jobs)
    assert isinstance(refused, DataError)
    assert "no 3" in str(refused)
    assert len(accepted) == 7


@pytest.mark.parametrize("name", ["chatml", "plain", "llama3_1", "gemma3", "qwen2_5"])
def test_rows_are_the_same_as_without_shared_renderings(tokenizer, name, monkeypatch):
    changed = with_source(tokenizer, SOURCES[name])
    stops = [changed.eos_token_id, changed.convert_tokens_to_ids("<|eot_id|>")]
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], f"text {i} of <|im_end|> it") for i in range(24))
    dialogues = [Dialogue(messages), Dialogue((Message("system", "be brief"), *messages))]
    dialogues += [replace(dialogue, loss_on_prompts=True) for dialogue in dialogues]

    def encode():
        return [
            str(rows) if isinstance(rows, DataError) else rows
            for rows in DialogueEncoder(changed, stops).encode(dialogues)
        ]

    together = encode()
    monkeypatch.setattr("lora_chat.data.encoding.prefix_rendering._MIN_CHATS", 10**6)
    assert together == encode()


def test_forged_marks_are_text():
    """Marks have a random start, so neither a template nor a message can write one."""
    marks = "".join(f"{'0' * 32}{sign}{n};" for sign in ":!" for n in range(3))
    source = LOOP.replace("{{", marks + "{{", 1) + marks
    messages = [{**message, "content": message["content"] + marks} for message in TALK]
    pieces = render_pieces(source, messages)
    assert pieces is not None
    assert pieces == render_each(source, messages, pieces)
    render = find_stepwise_render(source)
    find_stepwise_render.cache_clear()
    assert render is not find_stepwise_render(source)


def test_a_special_token_cannot_replace_the_messages():
    from transformers.utils.chat_template_utils import _compile_jinja_template

    from lora_chat.data.encoding.chat_template import _render_in_process
    from lora_chat.data.encoding.template_worker import render_request

    for stepwise in (False, True):
        job = RenderJob([TALK], True, stepwise=stepwise)
        for name in ("messages", "tools", "add_generation_prompt"):
            answer = _render_in_process(CHATML_TEMPLATE, {name: "x"}, job)
            assert isinstance(answer, DataError)
            assert "multiple values" in str(answer)
            (builder,) = [request for request, _ in split_into_requests(CHATML_TEMPLATE, {name: "x"}, [job])]
            (answered,) = render_request(builder, lambda source: _compile_jinja_template(source).render)
            assert "multiple values" in answered["error"]


def test_long_text_around_a_long_message_is_not_repeated_for_every_beginning():
    messages = [*TALK, user("x" * 100_000)]
    job = RenderJob([messages[:k] for k in range(1, len(messages) + 1)], True)
    asked = []

    def render(parts):
        asked.extend(part.stepwise for part in parts)
        pieces = ["1", "b" * 1_000_000, "", *("x" for _ in messages)]
        return [pieces if part.stepwise else ["x" for _ in part.chats] for part in parts]

    (texts,) = render_with_shared_prefixes([job], render)
    assert texts == ["x"] * len(messages)
    assert asked == [False, True, False]


def test_renders_a_number_of_messages_that_grows_with_the_turns():
    def count_rendered(turns):
        messages = [user("q"), assistant("a")] * (turns // 2)
        jobs = [RenderJob([messages[:k] for k in range(1, turns, 2)], True)]
        rendered = 0

        def render(parts):
            nonlocal rendered
            rendered += sum(len(chat) for part in parts for chat in part.chats)
            return [
                ["1", "", "", *("x" for _ in part.chats[0])] if part.stepwise else ["x" * len(c) for c in part.chats]
                for part in parts
            ]

        (texts,) = render_with_shared_prefixes(jobs, render)
        assert texts == ["x" * k for k in range(1, turns, 2)]
        return rendered

    assert count_rendered(800) < 820


def test_bombs_of_nesting_are_rendered_without_pieces():
    assert find_stepwise_render("{{ " + "(" * 50 + "messages" + ")" * 50 + " | length }}") is not None
    assert render_pieces("{% if a %}" * 90 + LOOP + "{% endif %}" * 90, TALK) is None
