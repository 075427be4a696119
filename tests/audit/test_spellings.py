"""Every spelling of a key in every field of a dialogue is found and redacted, or documented as a limit."""

import base64
import html
import json
import quopri
import urllib.parse

import pytest
from made_up import ALNUM, BASE64URL, Maker

from lora_chat.audit.auditor import Auditor
from lora_chat.audit.redaction import redact_dialogue, redact_text
from lora_chat.audit.sensitive.normalize import UNDETECTED_SPELLINGS, decode_text, is_disguised
from lora_chat.audit.sensitive.scan import find_sensitive
from lora_chat.config.audit import AuditSection
from lora_chat.data.dialogue import Dialogue, Message, ToolCall

pytestmark = pytest.mark.slow

M = Maker(11)
GITHUB = "gh" + "p_" + M.chars(ALNUM, 30) + "x7Kq2B"
KEYS = {
    "github": GITHUB,
    "openai": "s" + "k-proj-" + M.chars(ALNUM, 44) + "9bQ4",
    "aws": "AK" + "IA" + "QZ7TXR4M2WKV5LHD",
    "google": "AI" + "za" + M.chars(BASE64URL[:-2], 31) + "4kQ9",
    "slack": "xo" + "xb-" + M.digits("############-############-") + M.chars(ALNUM, 24),
    "gitlab": "gl" + "pat-" + M.chars(ALNUM, 18) + "4T",
    "hugging face": "h" + "f_" + M.chars(ALNUM, 31) + "8Zq",
    "jwt": M.jwt(),
}
ALL = frozenset({"secret", "possible_secret", "personal_data"})


def inside(mark, every=1):
    return lambda key: "".join(c + (mark if i % every == 3 % every else "") for i, c in enumerate(key))


def each(change):
    return lambda key: "".join(change(c) for c in key)


def wide(c):
    return chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c


def mathematical(c):
    if c.isdigit():
        return chr(0x1D7CE + int(c))
    return chr((0x1D400 if c.isupper() else 0x1D41A) + ord(c.upper()) - 65) if c.isalpha() else c


def broken(mark):
    return lambda key: key[: len(key) // 2] + mark + key[len(key) // 2 :]


FOUND = {
    "plain": lambda key: key,
    **{
        f"U+{ord(c):04X}": broken(c)
        for c in "\u00ad\u034f\u061c\u115f\u17b4\u180e\u200b\u200c\u200d\u200e\u202e\u2060\u2064\u2066\u3164"
        "\ufe0f\ufeff\U000e0041\x00\x08\x1b\x7f"
    },
    "zero-width everywhere": inside("\u200b"),
    "two zero-width": broken("\u200b\u2060"),
    "combining marks": inside("\u0301", 4),
    "full-width": each(wide),
    "one full-width letter": lambda key: key[:6] + wide(key[6]) + key[7:],
    "full-width and zero-width": lambda key: inside("\u200d", 5)(each(wide)(key)),
    "mathematical": each(mathematical),
    "decimal entities": each(lambda c: f"&#{ord(c)};"),
    "hexadecimal entities": each(lambda c: f"&#x{ord(c):x};"),
    "upper-case hexadecimal entities": each(lambda c: f"&#X{ord(c):X};"),
    "one entity": lambda key: f"&#{ord(key[0])};{key[1:]}",
    "entities without semicolons": lambda key: f"{key[:4]}&#{ord(key[4])}-"[:-1] + ";" + key[5:],
    "padded entities": each(lambda c: f"&#{ord(c):05};"),
    "named entities": lambda key: key.replace("_", "&lowbar;").replace("-", "&#45;").replace(".", "&period;"),
    "soft hyphen entity": broken("&shy;"),
    "zero-width entity": broken("&#8203;"),
    "double entities": each(lambda c: html.escape(f"&#{ord(c)};")),
    "JSON escapes": each(lambda c: f"\\u{ord(c):04x}"),
    "doubled JSON escapes": each(lambda c: f"\\\\u{ord(c):04x}"),
    "one JSON escape": lambda key: f"\\u{ord(key[0]):04X}{key[1:]}",
    "braced escapes": each(lambda c: f"\\u{{{ord(c):x}}}"),
    "long escapes": each(lambda c: f"\\U{ord(c):08x}"),
    "hexadecimal escapes": each(lambda c: f"\\x{ord(c):02x}"),
    "octal escapes": each(lambda c: f"\\{ord(c):03o}"),
    "escaped zero-width": broken("\\u200b"),
    "percent-encoded": each(lambda c: f"%{ord(c):02X}"),
    "twice percent-encoded": lambda key: urllib.parse.quote("".join(f"%{ord(c):02X}" for c in key)),
    "percent-encoded zero-width": broken("%E2%80%8B"),
    "percent-encoded full-width": lambda key: urllib.parse.quote(each(wide)(key)),
    "quoted-printable zero-width": broken("=E2=80=8B=\n"),
    "one percent code": lambda key: f"%{ord(key[0]):02x}{key[1:]}",
    "quoted-printable": each(lambda c: f"={ord(c):02X}"),
    "soft line break": broken("=\n"),
    "soft line break of Windows": broken("=\r\n"),
    "line feed": broken("\n"),
    "line feed of Windows": broken("\r\n"),
    "indented line feed": broken("\n    "),
    "two line feeds": broken("\n\n"),
    "line separator": broken("\u2028"),
    "tabulator": broken("\t"),
    "blank": broken(" "),
    "spaced out": " ".join,
    "after an underscore": lambda key: "glued_" + key,
    "after letters": lambda key: "my" + key,
    "before an underscore": lambda key: key + "_old",
    "between underscores": lambda key: f"__{key}__",
    "after an equals sign": lambda key: "x=" + key,
    "in brackets": lambda key: f"<{key}>",
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 in a sentence": lambda key: base64.b64encode(f"the key is {key} now".encode()).decode(),
    "URL-safe base64": lambda key: base64.urlsafe_b64encode(f"key: {key}?>".encode()).decode().rstrip("="),
    "hexadecimal": lambda key: key.encode().hex(),
}
EXCEPTIONS = {
    ("openai", "after letters"): "sk- ends ordinary words such as task-",
}
UNKNOWN = {
    "split": lambda key: key[:14],
    "concatenated": lambda key: f'"{key[:9]}" + "{key[9:18]}" + "{key[18:]}"',
    "spelled": lambda key: key[::-1],
    "encoded twice": lambda key: base64.b64encode(base64.b64encode(key.encode())).decode(),
    "unknown format": lambda key: key.replace("_", "").replace("-", "")[4:],
    "broken numbers": lambda key: "4929 6517\n8023 1146",
}
PLACES = {
    "user": lambda s: Dialogue((Message("user", f"see {s} ok"), Message("assistant", "ok"))),
    "assistant": lambda s: Dialogue((Message("user", "q"), Message("assistant", f"It is {s}"))),
    "system": lambda s: Dialogue((Message("system", f"{s} is ours"), Message("user", "q"), Message("assistant", "ok"))),
    "reasoning": lambda s: Dialogue((Message("user", "q"), Message("assistant", "ok", reasoning=f"think {s}"))),
    "JSON content": lambda s: Dialogue((Message("user", json.dumps({"x": [s]})), Message("assistant", "ok"))),
    "argument": lambda s: called("f", json.dumps({"a": s})),
    "argument's key": lambda s: called("f", json.dumps({s: 1})),
    "nested JSON": lambda s: called("f", json.dumps({"a": json.dumps({"b": s})})),
    "tool's name": lambda s: called(f"f_{s}", "{}"),
    "call's id": lambda s: called("f", "{}", f"id {s}"),
    "result": lambda s: called("f", "{}", result=f"found {s}"),
    "description": lambda s: called("f", "{}", tools=[{"name": "f", "description": f"use {s}"}]),
    "parameter": lambda s: called(
        "f", "{}", tools=[{"name": "f", "parameters": {"properties": {s: {"type": "string"}}}}]
    ),
    "parameter's default": lambda s: called(
        "f", "{}", tools=[{"function": {"name": "f", "parameters": {"a": {"default": s}}}}]
    ),
}


def called(name, arguments, call_id="1", result="x", tools=None):
    messages = (
        Message("user", "q"),
        Message("assistant", "", tool_calls=(ToolCall(name, arguments, call_id),)),
        Message("tool", result, name=name, tool_call_id=call_id),
        Message("assistant", "ok"),
    )
    return Dialogue(messages, tools=json.dumps(tools or [{"name": name}], ensure_ascii=False))


def is_gone(key, spelled, said):
    bare = "".join(c for c in said if c.isalnum())
    plain = "".join(c for c in key if c.isalnum())
    parts = [plain[i : i + 9] for i in range(4, len(plain) - 9)]
    return spelled not in said and not any(part in bare for part in parts)


@pytest.mark.parametrize("spelling", FOUND)
def test_finds_and_redacts_disguised_key_in_every_field(spelling):
    spelled = FOUND[spelling](GITHUB)
    for place, make in PLACES.items():
        given = make(spelled)
        auditor = Auditor(AuditSection())
        auditor.add(given)
        assert auditor.report().counts.get("secret"), (place, spelled)
        assert all(GITHUB[6:14] not in finding.excerpt for finding in auditor.report().findings), place
        clean, count = redact_dialogue(given, ALL)
        assert count, place
        assert is_gone(GITHUB, spelled, repr(clean)), (place, clean)
        assert "SECRET" in repr(clean), place
        assert redact_dialogue(clean, ALL) == (clean, 0), place


@pytest.mark.parametrize("spelling", FOUND)
def test_finds_other_keys_in_every_spelling(spelling):
    for name, key in KEYS.items():
        if (name, spelling) in EXCEPTIONS:
            continue
        spelled = FOUND[spelling](key)
        clean, count = redact_text(f"Use {spelled} for it.", {"secret"})
        assert count, (name, spelled)
        assert is_gone(key, spelled, clean), (name, clean)
        assert clean.startswith("Use "), name
        assert clean.endswith(" for it."), name


def test_text_around_a_disguised_key_is_unchanged():
    text = f"Zürich ‚１２‘ &amp; 100%25: {inside(chr(0x200B))(GITHUB)} \\u0041 =3D, ¡adiós!"
    clean, count = redact_text(text, {"secret"})
    assert count == 1
    assert clean == text.replace(inside(chr(0x200B))(GITHUB)[:-1], "[SECRET]")


@pytest.mark.parametrize(("name", "meaning"), UNDETECTED_SPELLINGS, ids=lambda value: value[:20])
def test_documented_limits_are_real(name, meaning):
    assert meaning
    assert [m for m in find_sensitive(f"Use {UNKNOWN[name](GITHUB)} for it.") if m.kind == "secret"] == []


@pytest.mark.parametrize(
    "text",
    [
        "anna.meier77&#64;gmail.com",
        "anna.meier77%40gmail.com",
        "anna.meier77\u200b@gmail.com",
        "ａnna.meier77＠gmail．com",
        "call ＋４９ １５１ ２３４５ ６７８９",
        "call +٤٩ ١٥١ ٢٣٤٥ ٦٧٨٩",
        "password\u200b: Xk29fQz7Lm",
        "p&#97;ssword: Xk29fQz7Lm",
    ],
)
def test_finds_disguised_addresses_numbers_and_passwords(text):
    clean, count = redact_text(text, ALL)
    assert count == 1
    assert "[" in clean


@pytest.mark.parametrize(
    "text",
    [
        "Fish &amp; chips cost 5&nbsp;€ &#8212; 20%25 off",
        "Preis: ５ €, ① zuerst, ② danach, 10² = 100",
        "می‌خواهم این را بخوانم 👨‍👩‍👧 ❤️",
        "The disk-based task-1234-long-slug-name-9 and\nrisk-free desk-top",
        "AKIA is a prefix\nABCDEFGH 12345678 IJKLMNOP",
        "ghp" + "_ is followed by 36 characters\nof letters and digits 0 to 9",
        "hf" + "_hub_download and\nhf" + "_token are names in 2 libraries",
        "x = 48/2=24>>24 and 3*9=27>>27 and 5=50, =3D",
        "C:\\users\\x41\\u0041 and \\\\server",
        "A B C D E F G 1 2 3 4 5 6 7 8 9",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
        "R4 K7 M2 B9 X1 C3 V5 N8 S6 D4 F2 G7 H1 J9",
        "aGVsbG8gdGhlcmUsIGhvdyBhcmUgeW91IHRvZGF5",
    ],
)
def test_ordinary_text_with_codes_has_no_matches(text):
    assert find_sensitive(text) == []


def test_finds_each_of_several_adjacent_keys():
    keys = ["s" + "k-" + M.chars(ALNUM, 40) + "7kQ" for _ in range(3)]
    for between in ("\n", " ", ", ", "\r\n"):
        assert len(find_sensitive(between.join(keys))) == 3
    assert redact_text(f"{GITHUB}\nThen we went home.", ALL) == ("[SECRET]\nThen we went home.", 1)


def test_redacted_names_are_valid_and_calls_match_their_tools():
    given = called(f"send_{GITHUB}", "{}", tools=[{"type": "function", "function": {"name": f"send_{GITHUB}"}}])
    clean, _ = redact_dialogue(given, ALL)
    names = {clean.messages[1].tool_calls[0].name, clean.messages[2].name, clean.tool_list[0]["function"]["name"]}
    assert names == {"send_SECRET"}
    other = "gh" + "p_" + M.chars(ALNUM, 30) + "8Zk3Q1"
    calls = tuple(ToolCall(f"f_{key}", "{}") for key in (GITHUB, other, GITHUB))
    clean, _ = redact_dialogue(Dialogue((Message("user", "q"), Message("assistant", "", tool_calls=calls))), ALL)
    assert [call.name for call in clean.messages[1].tool_calls] == ["f_SECRET", "f_SECRET_2", "f_SECRET"]


def test_finds_secret_under_a_repeated_json_key():
    text = f'{{"a": "{GITHUB}", "a": "x"}}'
    clean, count = redact_dialogue(Dialogue((Message("user", text), Message("assistant", "ok"))), ALL)
    assert (clean.messages[0].content, count) == ('{"a": "[SECRET]", "a": "x"}', 1)


def test_decoded_characters_have_their_original_offsets():
    text = quopri.encodestring(b"a_b").decode() + "&#103;\u200bｈ%70\\x5f=\n"
    found = decode_text(text)
    assert found.text == "a_bghp_"
    assert [text[s:e] for s, e in zip(found.starts, found.ends, strict=True)][3:] == ["&#103;", "ｈ", "%70", "\\x5f"]
    assert not is_disguised("plain text, 100 % plain & simple; C:\\new")
    assert decode_text("x &unknown; \\q %zz") is None
