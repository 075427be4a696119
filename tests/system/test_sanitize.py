import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.system.sanitize import sanitize_line, sanitize_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, äöü 你好 🙂", "plain, äöü 你好 🙂"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b31m", "\\x9b31m"),
        ("bell\x07 back\x08 null\x00 del\x7f", "bell\\x07 back\\x08 null\\x00 del\\x7f"),
        ("a\nb\r\nc\td", "a\\nb\\r\\nc\\td"),
        ("\u202eright to left\u2066", "\\u202eright to left\\u2066"),
        ("\u2028\u2029\x85", "\\u2028\\u2029\\x85"),
        ("\u200b\ufeff\u00ad", "\\u200b\\ufeff\\xad"),
        ("\ud800", "\\ud800"),
        ("\U000e0041\U000f0000", "\\U000e0041\\U000f0000"),
        ("no\u00a0break\u3000wide", "no\u00a0break\u3000wide"),
    ],
)
def test_control_characters_become_escapes(text, shown):
    assert sanitize_line(text) == shown


@settings(deadline=None, max_examples=300, derandomize=True)
@given(text=st.text(st.characters(), max_size=50), limit=st.integers(3, 60))
def test_no_control_character_remains_and_cuts_keep_the_start(text, limit):
    shown = sanitize_line(text)
    assert all(unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for character in shown)
    shown.encode("utf-8")
    if len(text) <= limit:
        assert sanitize_line(text, limit) == shown
    else:
        assert sanitize_line(text, limit) == sanitize_line(text[: limit - 3]) + "..."
    assert sanitize_lines(text).replace("\n", "\\n") == shown
