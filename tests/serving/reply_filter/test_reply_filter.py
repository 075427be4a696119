"""However a reply arrives, the same text without secrets and personal data is sent."""

import json
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reply_texts import AWS, CARD, GITHUB, IBAN, JWT, MAIL, PHONE, PLANTED, make_reply, private_key

from lora_chat.audit.redaction import redact_text
from lora_chat.audit.sensitive.scan import find_sensitive
from lora_chat.errors import UsageError
from lora_chat.serving.reply_filter.clean_arguments import clean_arguments
from lora_chat.serving.reply_filter.filter_settings import (
    FILTER_KINDS,
    FilterSettings,
    make_filter_settings,
    read_allowed_values,
)
from lora_chat.serving.reply_filter.reply_filter import ReplyFilter
from lora_chat.serving.reply_filter.value_search import ReplyFindings

EXAMPLES = 400 if os.environ.get("LORA_CHAT_ALL_BASES") else 8
REDACT, BLOCK = FilterSettings("redact"), FilterSettings("block")


def send(text, filter_settings=REDACT, lengths=None, findings=None):
    """Return what is sent of a text that arrives in parts of these lengths, and the filter."""
    reply_filter = ReplyFilter(filter_settings, findings)
    sent, at = [], 0
    for length in lengths or [len(text)]:
        sent.append(reply_filter.feed(text[at : at + length]))
        at += length
    return "".join([*sent, reply_filter.feed(text[at:]), reply_filter.close()]), reply_filter


def random_lengths(text, seed):
    rnd = random.Random(seed)
    return [rnd.choice([1, 1, 2, 3, 5, 8, 20, 100]) for _ in text]


@pytest.mark.parametrize("first", range(0, len(PLANTED), 60))
def test_equals_redaction_of_the_whole_text_for_each_detector(first):
    for number, text in enumerate(PLANTED[first : first + 60]):
        assert send(text, lengths=random_lengths(text, number))[0] == redact_text(text, set(FILTER_KINDS))[0]


@given(st.integers(0, 10**9), st.integers(0, 10**9))
@settings(max_examples=EXAMPLES, deadline=None)
def test_output_does_not_depend_on_the_parts_and_contains_no_find(seed, split):
    text = make_reply(seed)
    whole = send(text)[0]
    assert send(text, lengths=random_lengths(text, split))[0] == whole
    for match in find_sensitive(text):
        value = text[match.start : match.end]
        assert whole.count(value) < text.count(value)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
@settings(max_examples=EXAMPLES // 2, deadline=None)
def test_block_sends_a_clean_beginning(seed, split):
    text = make_reply(seed)
    sent, reply_filter = send(text, BLOCK, random_lengths(text, split))
    assert (sent, reply_filter.blocked) == (lambda pair: (pair[0], pair[1].blocked))(send(text, BLOCK))
    assert text.startswith(sent)
    first = find_sensitive(text)
    assert reply_filter.blocked or (not first and sent == text)
    assert not first or len(sent) < first[0].end
    assert not reply_filter.blocked or reply_filter.feed("more") == reply_filter.close() == ""


LONG = {
    "one token": ("a" * 50_000, "[SECRET]"),
    "token": ("see eyJ" + "A9b" * 300 + ".eyJ" + "A9b" * 6000 + "." + "sig9" * 2000 + " there", "see [SECRET] there"),
    "key": (f"see {private_key(250)}\nThe end.", "see [PRIVATE KEY]\nThe end."),
    "endless key": ("see " + private_key(900).rsplit("\n", 1)[0], "see [PRIVATE KEY]"),
    "short key lines": (
        "-----BEGIN PRIVATE KEY-----\n" + "\n".join(f"Q{i}z{i * 7 % 90}x" for i in range(300)),
        "[PRIVATE KEY]",
    ),
    "invisible": ("AKIA" + "\u200b" * 50_000 + AWS[4:], "[SECRET]"),
    "far apart": (("\n" + " " * 38).join(GITHUB), "[SECRET]"),
    "blanks": ("a" + " " * 50_000 + "b", None),
    "numbers": (" ".join(str(1000 + i * 37 % 9000) for i in range(4000)), None),
    "lines": ("\n".join(map(str, range(4000))), None),
    "tasks": ("\n".join(f"task-{i}" for i in range(4000)), None),
    "code": ('def f(x1, y=2):\n    self.x1 = x1 * 3.14 + foo[7]\n    return {"a": x1}\n' * 200, None),
    "many": (f"{GITHUB} " * 200, "[SECRET] " * 200),
}


@pytest.mark.parametrize("name", LONG)
def test_long_texts_neither_leak_nor_stall_nor_grow(name):
    text, expected = LONG[name]
    reply_filter = ReplyFilter(REDACT)
    sent, largest = [], 0
    for at in range(0, len(text), 50):
        sent.append(reply_filter.feed(text[at : at + 50]))
        largest = max(largest, len(reply_filter._buffer))
    sent.append(reply_filter.close())
    assert "".join(sent) == (text if expected is None else expected)
    assert largest < 4_200


def test_lines_of_a_long_broken_token_are_dropped():
    token = "eyJ" + "A9b" * 300 + ".eyJ" + "Q7x" * 4000 + "." + "sig9" * 30
    text = "\n".join(token[i : i + 64] for i in range(0, len(token), 64)) + "\nand afterwards everything else."
    assert send(text)[0] == "[SECRET]afterwards everything else."


@pytest.mark.parametrize(
    "text",
    ["The weather is nice today, and we go out.", "Погода сегодня хорошая, идём гулять.", "今天天气很好，我们去散步。"],
)
def test_ordinary_words_are_sent_when_they_end(text):
    reply_filter = ReplyFilter(REDACT)
    behind = [len(text[: n + 1]) for n in range(len(text))]
    sent = 0
    for n, character in enumerate(text):
        sent += len(reply_filter.feed(character))
        behind[n] -= sent
    assert max(behind) <= max(len(word) + 1 for word in text.split()) if " " in text else max(behind) == 0


def test_searches_only_the_chosen_kinds():
    text = f"Write to {MAIL}, the key is {GITHUB}."
    assert send(text, make_filter_settings("redact", ["secret"]))[0] == f"Write to {MAIL}, the key is [SECRET]."
    assert send(text, make_filter_settings("redact", ["personal_data"]))[0].startswith(
        "Write to [E-MAIL], the key is gh"
    )


def test_allowed_values_are_sent(tmp_path):
    allowed = tmp_path / "allowed.txt"
    allowed.write_text(f"# help desk\n{MAIL.upper()}\n{PHONE.replace(' ', '')}\n", encoding="utf-8")
    filter_settings = make_filter_settings("redact", (), read_allowed_values(allowed))
    text = f"Write to {MAIL} or call {PHONE}, not {IBAN}."
    assert send(text, filter_settings)[0] == f"Write to {MAIL} or call {PHONE}, not [IBAN]."


def test_counts_by_kind():
    _, reply_filter = send(f"{MAIL}, {CARD}, {GITHUB}, password: hunter2x9!", lengths=[7] * 12)
    assert reply_filter.counts == {"personal_data": 2, "secret": 1, "possible_secret": 1}


def test_a_value_that_was_replaced_is_replaced_in_all_texts_of_the_reply():
    findings = ReplyFindings()
    assert send("The password is Xk29fQz7Lm, remember it.", findings=findings)[0].count("[PASSWORD]") == 1
    assert "Xk29" not in send("So type Xk29fQz7Lm into the field.", findings=findings)[0]


def test_arguments_remain_json():
    arguments = json.dumps({"password": "Xk29fQz7Lm", "card": int(CARD), "to": [f"line\n{MAIL}"], "n": 3, "t": JWT})
    clean, is_blocked = clean_arguments(arguments, REDACT, ReplyFindings())
    expected = {"password": "[PASSWORD]", "card": "[CARD]", "to": ["line\n[E-MAIL]"], "n": 3, "t": "[SECRET]"}
    assert (json.loads(clean), is_blocked) == (expected, False)
    assert clean_arguments(arguments, BLOCK, ReplyFindings()) == ("", True)
    assert clean_arguments('{"a":  1}', BLOCK, ReplyFindings()) == ('{"a":  1}', False)
    assert clean_arguments(f'{{"key": "{GITHUB}', REDACT, ReplyFindings()) == ('{"key": "[SECRET]', False)


@pytest.mark.parametrize(("mode", "kinds"), [("hide", []), ("redact", ["leak"]), ("block", ["e-mail"])])
def test_rejects_unknown_settings(mode, kinds):
    with pytest.raises(UsageError, match="Fix: choose from"):
        make_filter_settings(mode, kinds)


def test_rejects_unreadable_lists(tmp_path):
    with pytest.raises(UsageError, match="Cannot read"):
        read_allowed_values(tmp_path / "absent")
    long_list = tmp_path / "long"
    long_list.write_text("\n".join(map(str, range(10_001))), encoding="utf-8")
    with pytest.raises(UsageError, match="Too many"):
        read_allowed_values(long_list)
