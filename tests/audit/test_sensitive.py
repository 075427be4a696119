from itertools import pairwise

import held_out
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.audit.sensitive.scan import (
    find_sensitive,
    longest_key_run,
    may_contain_personal_data,
    may_contain_secret,
)

SEEDS = range(3)
SECRETS = {"secret", "possible_secret"}


def covers(match, entry):
    return entry.value.rstrip(".") in entry.text[match.start : match.end]


def measure(source):
    """Return recall, precision and the missed entries. A text with any other match counts as one false alarm."""
    right = wrong = entries = 0
    missed = []
    for seed in SEEDS:
        for entry in source.make_planted(seed):
            found = find_sensitive(entry.text)
            hits = [m for m in found if entry.kind and covers(m, entry)]
            good = [m for m in hits if m.kind == entry.kind or {m.kind, entry.kind} <= SECRETS]
            entries += bool(entry.kind)
            right += bool(good)
            wrong += bool([m for m in found if m not in hits])
            if entry.kind and not good:
                missed.append(entry)
    return right / entries, right / (right + wrong), missed


def test_sets_are_large_enough():
    for source in (planted, held_out):
        hidden = [e for e in source.make_planted(0) if e.kind]
        assert len(hidden) >= 60
        assert len({e.detail for e in hidden}) >= 12
        assert len(source.make_lookalikes(0)) >= len(hidden)
        assert all(e.value in e.text for e in hidden)


@pytest.mark.parametrize(("source", "recall", "precision"), [(planted, 0.99, 0.99), (held_out, 0.86, 0.97)])
def test_recall_and_precision_do_not_decrease(source, recall, precision):
    found, sure, missed = measure(source)
    assert found >= recall, [(e.detail, e.text) for e in missed]
    assert sure >= precision


@pytest.mark.parametrize("source", [planted, held_out])
def test_match_has_the_detail_of_its_format(source):
    for entry in source.make_planted(1):
        exact = [m for m in find_sensitive(entry.text) if entry.kind and covers(m, entry)]
        assert all(m.detail == entry.detail or m.kind in SECRETS for m in exact)


def test_cheap_tests_exclude_no_match(monkeypatch):
    entries = [e for source in (planted, held_out) for e in source.make_planted(2)]
    before = [find_sensitive(e.text) for e in entries]
    for name in ("may_contain_secret", "may_contain_personal_data", "may_contain_number"):
        monkeypatch.setattr(f"lora_chat.audit.sensitive.scan.{name}", lambda *_: True)
    monkeypatch.setattr("lora_chat.audit.sensitive.assigned_secrets.may_contain_assigned_secret", lambda _: True)
    assert [find_sensitive(e.text) for e in entries] == before
    assert any(may_contain_secret(e.text, e.text.lower(), longest_key_run(e.text)) for e in entries)
    assert any(may_contain_personal_data(e.text) for e in entries)


def test_password_in_a_url_is_not_an_address():
    value = "Zx81" + "kkPq0"
    (match,) = find_sensitive(f"ftp://anna:{value}@files.firm.de/x")
    assert (match.detail, match.mark) == ("password in a URL", "[PASSWORD]")


PIECES = st.sampled_from(
    ["@", "a@b.de", "+49 151 23456789", "sk-", "-----BEGIN PRIVATE KEY-----", "eyJ", "://a:", "password: ", "4", "12 "]
)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.lists(st.text(max_size=20) | PIECES, max_size=12).map("".join))
def test_matches_are_sorted_and_do_not_overlap(text):
    found = find_sensitive(text)
    assert all(0 <= m.start < m.end <= len(text) and m.mark for m in found)
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert find_sensitive(text) == found


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "part",
    ["a", "1", "1 ", "12-", "token_", "password: ", "eyJaaaaaaaaaaa.", "x@a.", "sk-a", "http://a:", "+1 ", "AB12 "],
)
def test_long_texts_finish_in_time(part):
    find_sensitive(part * (20_000 // len(part)))


def test_finds_numbers_between_chinese_characters():
    number = "138" + "1203" + "9876"
    assert [m.detail for m in find_sensitive(f"请打{number}给我")] == ["phone number"]
