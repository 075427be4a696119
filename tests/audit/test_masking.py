import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.audit.excerpts import make_excerpt, make_opening, make_printable, mask_secret
from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.scan import find_sensitive

HIDDEN = [e for e in planted.make_planted(5) if e.kind]


def longest_shared(secret, text):
    best = 0
    for start in range(len(secret)):
        while start + best < len(secret) and secret[start : start + best + 1] in text:
            best += 1
    return best


@pytest.mark.parametrize("entry", HIDDEN, ids=lambda e: e.detail)
def test_excerpt_shows_at_most_four_characters_of_a_secret(entry):
    for match in find_sensitive(entry.text):
        excerpt = make_excerpt(entry.text, match)
        if entry.value in entry.text[match.start : match.end] and entry.detail != "private key":
            assert longest_shared(entry.value, excerpt) <= 4, excerpt
            assert f"({match.end - match.start})" in excerpt


@pytest.mark.parametrize("first", HIDDEN[::7], ids=lambda e: e.detail)
def test_context_of_an_excerpt_hides_other_secrets(first):
    for second in HIDDEN[::5]:
        text = f"{first.text} {second.text}"
        for match in find_sensitive(text):
            excerpt = make_excerpt(text, match)
            assert longest_shared(first.value, excerpt) <= 9
            assert longest_shared(second.value, excerpt) <= 9


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.text(max_size=80), st.integers(0, 80), st.integers(1, 30), st.sampled_from(["secret", "control_token"]))
def test_excerpt_is_one_short_printable_line(text, start, length, kind):
    match = TextMatch(kind, "x", min(start, len(text)), min(start + length, len(text)))
    excerpt = make_excerpt(text, match)
    assert excerpt.isprintable()
    assert len(excerpt) < 120


def test_removes_escape_sequences_and_invisible_characters():
    assert make_printable("a\x1b[31mb\u202ec\nd\u3000e") == "a�[31mb�c d e"


@pytest.mark.parametrize(("secret", "shown"), [("abc", "…(3)"), ("hunter2x", "hu…(8)"), ("k" * 40, "kkkk…(40)")])
def test_mask_shows_at_most_a_quarter_and_four_characters(secret, shown):
    assert mask_secret(secret) == shown


def test_opening_is_masked():
    text = "Write to " + "anna.meier77" + "@gmail.com today and tomorrow and on all other days of the week"
    opening = make_opening(text, find_sensitive(text))
    assert "meier" not in opening
    assert opening.startswith("Write to anna…(22) today")
