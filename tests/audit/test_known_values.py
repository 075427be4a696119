"""A value that is redacted in one place of a dialogue gets the same mark in all other places."""

import json
import time
from dataclasses import replace

import pytest

from lora_chat.audit.known_values import KnownValues
from lora_chat.audit.redaction import redact_dialogue, redact_text, redact_texts
from lora_chat.data.dialogue import Dialogue, Message, ToolCall

KINDS = frozenset({"secret", "possible_secret", "personal_data"})
PHONE = "69927" + "92935"
MAIL = "Jane.Doe7" + "@web-mail.org"
PASSWORD = "kV9" + "x2Tq!7"


def converse(result, arguments, reply="Done.", question="Look it up"):
    call = ToolCall("use", json.dumps(arguments), "1")
    return Dialogue(
        (
            Message("system", f"Be brief about {PHONE}."),
            Message("user", question),
            Message("assistant", "", tool_calls=(ToolCall("find", "{}", "0"),)),
            Message("tool", result, tool_call_id="0"),
            Message("assistant", "", reasoning=f"Use {PHONE}.", tool_calls=(call,)),
            Message("tool", "ok", tool_call_id="1"),
            Message("assistant", reply),
        )
    )


def read_arguments(dialogue):
    return json.loads(dialogue.messages[4].tool_calls[0].arguments)


@pytest.mark.parametrize(
    "written",
    [
        PHONE,
        "699-279-2935",
        "699 279 2935",
        "(699) 279-2935",
        "699.279.2935",
        int(PHONE),
        float(PHONE),
        f"+1 {PHONE}",
        f"+1{PHONE}",
        [PHONE],
        {"id": PHONE},
    ],
)
def test_number_of_a_result_is_redacted_in_the_call_too(written):
    given = converse(json.dumps({"phone": PHONE}), {"number": written}, f"I called {PHONE}, not 12345.")
    clean, count = redact_dialogue(given, KINDS)
    assert PHONE not in json.dumps(clean.as_row)
    assert json.dumps(read_arguments(clean)).replace('"id"', "").count("[PHONE]") == 1
    assert clean.messages[-1].content == "I called [PHONE], not 12345."
    assert clean.messages[0].content == "Be brief about [PHONE]." and clean.messages[4].reasoning == "Use [PHONE]."
    assert json.loads(clean.messages[3].content) == {"phone": "[PHONE]"}
    assert count == 5
    assert redact_dialogue(clean, KINDS) == (clean, 0)


def test_other_numbers_stay():
    others = {"a": PHONE + "1", "b": "1" + PHONE, "c": f"x{PHONE}", "d": PHONE[:-1], "e": int(PHONE) + 1}
    clean, _ = redact_dialogue(converse(json.dumps({"phone": PHONE}), others), KINDS)
    assert read_arguments(clean) == others


def test_number_with_its_country_code_is_the_number_without():
    given = converse("Phone: +49 1512 3456789", {"a": "01512 3456789", "b": 15123456789, "c": "0049-1512-3456789"})
    clean, _ = redact_dialogue(given, KINDS)
    assert set(read_arguments(clean).values()) == {"[PHONE]"}


def test_addresses_and_passwords_are_replaced_everywhere():
    given = converse(
        f"{MAIL} has the password: {PASSWORD}",
        {"to": MAIL.lower(), "login": PASSWORD, "text": f"邮箱{MAIL}和{PASSWORD}", "other": f"x{MAIL}y", "key": "kV9"},
    )
    clean, _ = redact_dialogue(given, KINDS)
    arguments = read_arguments(clean)
    assert arguments["to"] == "[E-MAIL]" and arguments["login"] == "[PASSWORD]" and arguments["key"] == "kV9"
    assert arguments["text"] == "邮箱[E-MAIL]和[PASSWORD]"
    assert redact_dialogue(clean, KINDS) == (clean, 0)


def test_value_has_one_mark_in_all_places():
    given = converse(json.dumps({"phone": "111222333", "tel": PHONE}), {"bsn": "111222333", "fax": PHONE})
    clean, _ = redact_dialogue(given, KINDS)
    assert read_arguments(clean)["fax"] == "[PHONE]"
    marks = KnownValues()
    assert [marks.mark("111 222 333", mark) for mark in ("[ID]", "[PHONE]")] == ["[ID]", "[ID]"]


def test_names_and_ids_are_replaced_with_valid_names():
    given = converse(json.dumps({"phone": PHONE}), {})
    renamed = replace(given.messages[4].tool_calls[0], name=f"use_{PHONE}", id=f"call_{PHONE}")
    messages = [*given.messages]
    messages[4], messages[5] = (
        replace(messages[4], tool_calls=(renamed,)),
        replace(messages[5], tool_call_id=renamed.id),
    )
    clean, _ = redact_dialogue(replace(given, messages=tuple(messages)), KINDS)
    call = clean.messages[4].tool_calls[0]
    assert (call.name, call.id, clean.messages[5].tool_call_id) == ("use_PHONE", "call_PHONE", "call_PHONE")


def test_only_kinds_that_are_redacted_spread():
    given = converse(json.dumps({"phone": PHONE}), {"number": PHONE})
    assert redact_dialogue(given, frozenset({"secret"})) == (given, 0)


def test_words_do_not_spread():
    text, _ = redact_text("postgres://anna:wonderful@db.internal/x", KINDS)
    assert "[PASSWORD]" in text
    assert (
        redact_texts(["postgres://anna:wonderful@db.internal/x", "a wonderful day"], KINDS)[0][1] == "a wonderful day"
    )


def test_answers_of_a_question_get_its_marks():
    assert redact_texts([f"Whose phone is {PHONE}?", PHONE, "Anna"], KINDS)[0] == [
        "Whose phone is [PHONE]?",
        "[PHONE]",
        "Anna",
    ]


@pytest.mark.parametrize("make", [lambda i: f"tel {6000000000 + 7919 * i}", lambda i: f"a.{'b' * (i % 50)}{i}@c.de"])
def test_many_values_take_linear_time(make):
    def measure(count):
        values = [make(i) for i in range(count)]
        given = converse(json.dumps(values), {f"k{i}": value.split()[-1] for i, value in enumerate(values)})
        start = time.process_time()
        redact_dialogue(given, KINDS)
        return time.process_time() - start

    measure(5)
    assert measure(240) < 20 * max(measure(40), 0.01)
