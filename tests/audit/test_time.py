"""The time of audit and redaction grows linearly with the length of adversarial texts."""

import json
import os
import random
import time

import pytest
from made_up import ALNUM, Maker, groups

from lora_chat.audit.auditor import Auditor
from lora_chat.audit.redaction import redact_dialogue
from lora_chat.audit.sensitive import phones
from lora_chat.config.audit import AuditSection
from lora_chat.data.dialogue import Dialogue, Message, ToolCall

LARGE = int(os.environ.get("LORA_CHAT_TIMING_CHARACTERS", 20_000))
"""Characters of a text; 80,000 find a slow growth with a small factor as well."""
SMALL = LARGE // 4
ENOUGH = LARGE * 6e-6
"""CPU seconds for LARGE that are accepted without a comparison with SMALL."""
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_garbage_collection")]
MAKER = Maker(5)
KEY = "gh" + "p_" + MAKER.chars(ALNUM, 36)
CARDS = [MAKER.card("4", 16) for _ in range(300)]
IBANS = [MAKER.iban("DE", MAKER.digits("#" * 18)) for _ in range(300)]
MIXED = random.Random(3)


def repeat(part):
    return lambda size: part * (size // len(part))


def count(pattern, step=977, start=100_000_000):
    """Return a maker of texts that repeat a pattern with a different number in place of {}."""
    return lambda size: "".join(pattern.format(start + i * step) for i in range(size // len(pattern.format(start))))


def row(parts, between):
    return lambda size: between.join(parts * (size // (len(parts[0]) * len(parts)) + 1))[:size]


REPEATED = [
    *"1.-@[{\\&%=/(*#~'\"\t\r\0",
    *"\u00ad\u200b\u0301\ufeff１٤İßﷺ😀，知",
    *(" ", "\n", " 1", "1\n", "1.", "12-", "1/", "(1", "12 ", "4111-1111-", "+1 ", "٤ ", "１ ", "१२३४५६७८९ ", "1١１१"),
    *("a@", "a@a.", "@a.b.c.d", "a'a@a.", "a%b@", "xn--a@b.", "ａ＠ｂ．ｃ "),
    *("eyJ", "eyJaaaaaaaaaa-", "eyJaaaaaaaaaa.", "-eyJaaaaaaaaaa.eyJ", "eyJaaaaaaaaaa.eyJaaaaaaaaaa-", "a.eyJ"),
    *("-----BEGIN ", "-----BEGIN RSA PRIVATE KEY-----\n", "-----BEGIN PRIVATE KEY-----" + "A-B-" * 30, "-----END "),
    *("-----BEGIN PRIVATE KEY-----" + "Ab1c" * 12, "--- ", "PRIVATE KEY-----"),
    *("a://", "ab://x:", "http://a:b@", "http://a:bcd@h", "://", "a+b-c.", "ftp://[", "https://u:p%40@h/"),
    *(
        "password: ",
        "password=",
        "token_",
        "token=",
        "secret is ",
        "bearer ",
        "bearer " + "a" * 25 + " ",
        "api_key_a_b",
    ),
    *("authorization: basic ", "密码是", "пароль: ", "key-", "key: "),
    *("sk-", "sk-a1-", "-sk-", "AKIA", "SK1", "AC1a", "0a1b-us", "a1Q~", "0a1b2c", "12345678:AA", "xoxb-a-", "glpat-"),
    *("pypi-AgE-", "hooks.slack.com/services/T", "discord.com/api/webhooks/1", "ya29.", "SG.a", "hvs.", "AIza", "hf_"),
    *(
        "{{",
        "{{ ",
        "{{a",
        "{{a.b",
        "{{a|b",
        "{{a[",
        "{%",
        "{%if ",
        "{% if a -",
        "{{a(b)",
        "[ {{c[x]",
        "}}",
        "<|",
        "<|a ",
    ),
    *("<|im_end|>", "[INST]", "### Instruction:\n", "<<SYS>>", "[CARD]", "[CARD] 1@b.de "),
    *(
        "f*ck ",
        "sh1",
        "a1",
        "a*",
        "fuck ",
        "kill your ",
        "RSSMRA85T10A562S ",
        "a\u0301",
        "a\u200b",
        "aа1",
        "안녕 ",
        "สวัสดี",
    ),
    *(
        "g h p _ ",
        "a\n",
        "a b\n",
        "A1\n",
        "&#103;",
        "&#",
        "&amp;#",
        "&amp;amp;",
        "&lowbar",
        "\\u0067",
        "\\x67",
        "\\\\u00",
    ),
    *(
        "%67",
        "%25",
        "%2567",
        "=67",
        "=\n",
        "=3D",
        "Z2hwX1px",
        "Z2hwX1px ",
        "hello there my friend ",
        KEY,
        KEY + " ",
        KEY + "_",
    ),
    *(
        KEY[:20] + "\n" + KEY[20:] + "\n",
        KEY[:20] + "\u200b" + KEY[20:] + " ",
        "\u200b".join(KEY) + " ",
        " ".join(KEY) + " ",
    ),
    *(KEY.replace("g", "&#103;") + " ", "gh" + "p_", "ghp" + "_\n", "gh" + "p_a1B2 "),
]
MADE = {
    "one long word": lambda n: "a" * n,
    "local part": lambda n: "a" * n + "@",
    "quoted local part": lambda n: "a'" * (n // 4) + "a@" + "a." * (n // 4),
    "domain": lambda n: "a@" + "a." * (n // 2),
    "blanks in an expression": lambda n: "{{" + " " * n,
    "blanks in a statement": lambda n: "{%" + " " * n,
    "dots in an expression": lambda n: "{{a" + ".a" * (n // 2),
    "brackets in an expression": lambda n: "{{a" + "[a]" * (n // 3),
    "expressions in brackets": lambda n: "{{a" + "[ {{c[x]" * (n // 8),
    "entity in entities": lambda n: "&" + "amp;" * (n // 4) + "#103;",
    "percent in percent": lambda n: "%" + "25" * (n // 2) + "67",
    "backslashes": lambda n: "\\" * n + "u0067",
    "host": lambda n: "ab://" + "x" * n,
    "scheme": lambda n: "a" * n + "://x:y@z",
    "value": lambda n: "密码是" + "x" * n,
    "half a token": lambda n: "sk-" + "a1" * (n // 2),
    "base64": lambda n: "Ab1+" * (n // 4),
    "word among profanity": lambda n: "fuck " + "a " * (n // 2),
    "disguised words": lambda n: " ".join("".join(MIXED.choices("abfuck*@1!3", k=8)) for _ in range(n // 9)),
    "cards": row(CARDS, " "),
    "cards by line": row(CARDS, "\n"),
    "grouped cards": row([groups(card) for card in CARDS], " "),
    "joined cards": row(CARDS, "-"),
    "ibans": row(IBANS, " "),
    "grouped ibans": row([groups(iban) for iban in IBANS], " "),
    "wrong ibans": count("GB82NWBK{:014d} "),
    "addresses": count("a{0}@b{0}.de "),
    "addresses and slashes": count("a{0}@b{0}.de/"),
    "addresses and commas": count("a{0}@b{0}.de,"),
    "phones": count("tel 0{} ", 97_777, 1_000_000_000),
    "wrong phones": count("tel 99 {} "),
    "international phones": count("+{} ", 977_377, 10_000_000_000),
    "numbers": count("{} "),
    "numbers and slashes": count("{}/"),
    "numbers and commas": count("{}, "),
    "ids of nine": count("ssn nhs tfn sin bsn dni {} "),
    "ids of ten": count("nhs cpr egn cnp kimlik rodne {} ", 977_377, 1_000_000_000),
    "ids of eleven": count("cpf pesel kimlik tax id {} ", 977_377, 10_000_000_000),
    "passwords": count("password: Xk2f{}x "),
    "URLs": count("ab://u:Xk29f{}@h.de "),
    "list": lambda n: json.dumps(["a"] * (n // 5)),
    "numbers in a list": lambda n: json.dumps(list(range(10**8, 10**8 + n // 11))),
    "keys that become equal": lambda n: json.dumps({f"a{i}@b{i}.de": 1 for i in range(n // 18)}),
    "one long key": lambda n: json.dumps({"k" * (n // 2): ["a1"] * (n // 12)}),
    "one long key of passwords": lambda n: json.dumps({"password" * (n // 16): [f"Xk29fQ{i}" for i in range(n // 24)]}),
    "open brackets": lambda n: "[" * n,
    "open objects": lambda n: '{"a":' * (n // 5),
    "brackets": lambda n: "[" * 50 + "[]," * (n // 3) + "[]" + "]" * 50,
    "JSON in JSON": lambda n: json.dumps([json.dumps(json.dumps(json.dumps(KEY)))] * (n // 60)),
}
POLICY = AuditSection(secret="redact", possible_secret="redact", personal_data="redact")


def seconds(dialogue):
    phones._has_valid_digits.cache_clear()
    phones._is_valid_in_any_region.cache_clear()
    started = time.process_time()
    auditor = Auditor(POLICY, ["<|im_start|>", "<|im_end|>"])
    auditor.add(dialogue)
    auditor.report()
    redact_dialogue(dialogue, POLICY.redacted)
    return time.process_time() - started


def check(make):
    seconds(make(100))
    took = seconds(make(LARGE))
    assert took < ENOUGH or took < 12 * max(seconds(make(SMALL)), ENOUGH / 12), took


@pytest.mark.parametrize("part", REPEATED, ids=ascii)
def test_repeated_parts_take_linear_time(part):
    check(lambda size: Dialogue((Message("user", "go"), Message("assistant", repeat(part)(size)))))


@pytest.mark.parametrize("name", MADE)
def test_adversarial_replies_take_linear_time(name):
    check(lambda size: Dialogue((Message("user", MADE[name](size)), Message("assistant", "ok"))))


@pytest.mark.parametrize("name", ["cards", "addresses", "phones", "ids of ten", "passwords", "one long word", "list"])
def test_adversarial_arguments_take_linear_time(name):
    def make(size):
        text = MADE[name](size)
        pieces = [text[i : i + 25] for i in range(0, size // 2, 25)]
        arguments = json.dumps({text[:500]: pieces, "password": text[: size // 4]})
        return Dialogue((Message("user", "go"), Message("assistant", "", tool_calls=(ToolCall("f", arguments),))))

    check(make)


@pytest.mark.parametrize("kind", ["calls", "messages", "tools"])
def test_many_parts_take_linear_time(kind):
    def make(size):
        many = size // 40
        calls = tuple(
            ToolCall(f"f{i}", f'{{"a{i}": "{i}@b.de"}}', f"id{i}") for i in range(many if kind == "calls" else 0)
        )
        turns = [Message("user", "q"), Message("assistant", f"{KEY} {size}")] * (many if kind == "messages" else 1)
        tools = (
            json.dumps([{"name": f"f{i}", "description": KEY} for i in range(many // 2)]) if kind == "tools" else None
        )
        return Dialogue((*turns, Message("user", "q"), Message("assistant", "", tool_calls=calls)), tools=tools)

    check(make)
