import json
from dataclasses import replace

import held_out
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import ALNUM, Maker

from lora_chat.audit.redaction import redact_dialogue, redact_text
from lora_chat.audit.sensitive.scan import find_sensitive
from lora_chat.data.dialogue import Dialogue, Message, ToolCall

BOTH = frozenset({"secret", "possible_secret", "personal_data"})
MAIL = "anna.meier77" + "@gmail.com"
HIDDEN = [e for source in (planted, held_out) for e in source.make_planted(3) if e.kind]
FOUND = [e for e in HIDDEN if any(e.value in e.text[m.start : m.end] for m in find_sensitive(e.text))]


def dialogue(question, answer="ok", **more):
    return Dialogue((Message("user", question), Message("assistant", answer, **more)), 3, path="x.jsonl")


@pytest.mark.parametrize("entry", FOUND, ids=lambda e: e.detail)
def test_redacts_found_values_in_every_field(entry):
    given = dialogue(entry.text, entry.text, reasoning=entry.text)
    clean, count = redact_dialogue(given, BOTH)
    assert count >= 3
    assert entry.value not in repr(clean)
    assert (clean.line, clean.path) == (3, "x.jsonl")
    assert entry.value in given.messages[0].content


def test_marks_name_the_redacted_kind():
    card = Maker(1).card("4", 16)
    clean, count = redact_dialogue(dialogue(f"I am {MAIL}, my card is {card}."), BOTH)
    assert clean.messages[0].content == "I am [E-MAIL], my card is [CARD]."
    assert count == 2


def test_redacts_only_the_given_kinds():
    key = "gh" + "p_" + Maker(2).chars(ALNUM, 36)
    text = f"{MAIL} {key}"
    assert redact_dialogue(dialogue(text), {"secret"})[0].messages[0].content == f"{MAIL} [SECRET]"
    assert redact_dialogue(dialogue(text), {"personal_data"})[0].messages[0].content == f"[E-MAIL] {key}"
    assert redact_dialogue(dialogue(text), set()) == (dialogue(text), 0)


def test_json_remains_valid_and_keys_are_context():
    value = "Xk29" + "fQz7Lm"
    arguments = json.dumps({"to": [f"line\n{MAIL}"], "password": value, MAIL: 1, "n": [1.5, True, None]})
    tools = json.dumps([{"name": "mail", "description": f'"{MAIL}"'}])
    call = ToolCall("mail", arguments, "1")
    clean, count = redact_dialogue(replace(dialogue("go", "", tool_calls=(call,)), tools=tools), BOTH)
    assert count == 4
    expected = {"to": ["line\n[E-MAIL]"], "password": "[PASSWORD]", "[E-MAIL]": 1, "n": [1.5, True, None]}
    assert json.loads(clean.messages[1].tool_calls[0].arguments) == expected
    assert clean.tool_list == [{"name": "mail", "description": '"[E-MAIL]"'}]


def test_redacts_a_number_in_json():
    card = Maker(3).card("4", 16)
    clean, _ = redact_dialogue(dialogue("go", "", tool_calls=(ToolCall("pay", json.dumps({"card": int(card)})),)), BOTH)
    assert json.loads(clean.messages[1].tool_calls[0].arguments) == {"card": "[CARD]"}


def test_keeps_all_keys_that_become_equal():
    text = json.dumps({MAIL: 1, "x" + MAIL: 2})
    clean, _ = redact_dialogue(dialogue(text), BOTH)
    assert sorted(json.loads(clean.messages[0].content).values()) == [1, 2]


def test_redacts_very_deep_json_as_text():
    text = "[" * 5000 + f'"{MAIL}"' + "]" * 5000
    clean, count = redact_dialogue(dialogue(text), BOTH)
    assert count == 1
    assert MAIL not in clean.messages[0].content


TEXTS = st.lists(
    st.sampled_from(
        [e.text for e in HIDDEN] + [e.value for e in HIDDEN] + ["[CARD]", "[", "]", "{", '"', "\\", "@", "0"]
    )
    | st.text(max_size=6),
    max_size=6,
).map("".join)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(TEXTS)
def test_redaction_is_idempotent(text):
    once, _ = redact_dialogue(dialogue(text, text or "ok"), BOTH)
    assert redact_dialogue(once, BOTH) == (once, 0)
    clean, count = redact_text(text, BOTH)
    assert redact_text(clean, BOTH) == (clean, 0)
    assert (count == 0) == (clean == text)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | TEXTS,
        lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=3),
        max_leaves=6,
    )
)
def test_any_arguments_remain_valid_json(value):
    call = ToolCall("f", json.dumps({"a": value}, ensure_ascii=False))
    once, _ = redact_dialogue(dialogue("go", "", tool_calls=(call,)), BOTH)
    json.loads(once.messages[1].tool_calls[0].arguments)
    assert redact_dialogue(once, BOTH) == (once, 0)
