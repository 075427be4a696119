"""All secrets and personal data of a text, without overlaps."""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import cache

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.assigned_secrets import may_contain_assigned_secret
from lora_chat.audit.sensitive.emails import find_emails
from lora_chat.audit.sensitive.hidden_keys import find_broken_keys, find_encoded_keys, may_contain_broken_key
from lora_chat.audit.sensitive.ibans import find_ibans
from lora_chat.audit.sensitive.key_formats import load_key_formats
from lora_chat.audit.sensitive.national_ids import find_national_ids, may_contain_number
from lora_chat.audit.sensitive.normalize import decode_text, is_disguised, may_be_disguised_part
from lora_chat.audit.sensitive.payment_cards import find_cards
from lora_chat.audit.sensitive.phones import find_phones
from lora_chat.audit.sensitive.secrets import find_secrets
from lora_chat.config.audit import FINDING_KINDS, FindingKind

REDACTION_MARK = re.compile(r"\[(?:SECRET|PASSWORD|PRIVATE KEY|E-MAIL|PHONE|CARD|IBAN|ID)\]")
"""Pattern of all marks that a redacted text can contain."""
_NUMBER_DETECTORS = (find_ibans, find_cards, find_national_ids, find_phones)
"""Detectors that are skipped if `may_contain_number` is False."""
_DIGIT = re.compile("[0-9]")
_MIN_KEY_CHARACTERS = 16
_MIN_ENCODED_CHARACTERS = 24
_NON_KEY_TO_SPACE = bytes(b if b < 128 and (chr(b).isalnum() or b in b"_-+/") else 32 for b in range(256))


@cache
def _load_keywords() -> tuple[str, ...]:
    """Return the keywords of all formats of keys."""
    return tuple({word for key_format in load_key_formats() for word in key_format.keywords} | {"PRIVATE KEY"})


def find_sensitive(text: str) -> list[TextMatch]:
    """Return secrets and personal data in order, without overlaps.

    Of two matches that overlap, the more certain kind remains, then the earlier, then the longer match.
    """
    matches = _find_all(text)
    if is_disguised(text):
        decoded = decode_text(text)
        matches += [decoded.locate(match) for match in _find_all(decoded.text)] if decoded else []
    return _without_overlaps(matches, text) if matches else []


def find_in_part(text: str, kinds: Collection[FindingKind]) -> list[TextMatch]:
    """Return all that `find_sensitive` can find here in whatever longer text this one is a part of, without overlaps.

    The cheap tests and the decision about quoted-printable, which depend on the whole text, are left out. Only matches
    of `kinds` are returned, and no match of another kind hides one of them. Matches of one kind that overlap become one
    match.
    """
    matches = _find_without_tests(text)
    for quoted_printable in (False, True) if may_be_disguised_part(text) else ():
        decoded = decode_text(text, quoted_printable)
        matches += [decoded.locate(match) for match in _find_without_tests(decoded.text)] if decoded else []
    return _without_overlaps(_join_overlapping(match for match in matches if match.kind in kinds), text)


def _find_without_tests(text: str) -> list[TextMatch]:
    """Return the matches of all detectors, which may overlap, without tests that depend on other parts of a text."""
    matches = [*find_secrets(text, None), *find_encoded_keys(text), *find_emails(text)]
    if _DIGIT.search(text):
        matches += [match for find in _NUMBER_DETECTORS for match in find(text)]
    return matches + list(find_broken_keys(text, matches))


def _find_all(text: str) -> list[TextMatch]:
    """Return the matches of all detectors, which may overlap."""
    matches = list(_run_detectors(text))
    if may_contain_broken_key(text):
        matches += list(find_broken_keys(text, matches))
    return matches


def _run_detectors(text: str) -> Iterator[TextMatch]:
    """Yield the matches of the detectors whose cheap tests do not exclude a match."""
    lower, run = text.lower(), longest_key_run(text)
    if may_contain_secret(text, lower, run):
        yield from find_secrets(text, lower)
    if run >= _MIN_ENCODED_CHARACTERS:
        yield from find_encoded_keys(text)
    if may_contain_personal_data(text):
        yield from find_emails(text)
        if may_contain_number(text):
            for find in _NUMBER_DETECTORS:
                yield from find(text)


def may_contain_sensitive(text: str) -> bool:
    """Return False only if `find_sensitive` cannot find anything. This is cheaper."""
    run = longest_key_run(text)
    return (
        run >= _MIN_ENCODED_CHARACTERS
        or may_contain_secret(text, text.lower(), run)
        or may_contain_personal_data(text)
        or is_disguised(text)
        or may_contain_broken_key(text)
    )


def longest_key_run(text: str) -> int:
    """Return the length of the longest run of characters that occur in keys and base64."""
    runs = text.encode("utf-8", "replace").translate(_NON_KEY_TO_SPACE).split()
    return len(max(runs, key=len)) if runs else 0


def may_contain_secret(text: str, lower: str, run: int) -> bool:
    """Return False only if a text has no name of a secret, and no long run of characters with a keyword of a key."""
    if "://" in text or may_contain_assigned_secret(lower):
        return True
    return run >= _MIN_KEY_CHARACTERS and any(word in text for word in _load_keywords())


def may_contain_personal_data(text: str) -> bool:
    """Return False only if a text cannot contain an address or a number of a person."""
    return "@" in text or may_contain_number(text)


def _without_overlaps(matches: list[TextMatch], text: str) -> list[TextMatch]:
    """Return the matches that do not overlap a mark or a match of a more certain kind."""
    covered = [mark.span() for mark in REDACTION_MARK.finditer(text)]
    selected: list[TextMatch] = []
    for kind in sorted({match.kind for match in matches}, key=FINDING_KINDS.index):
        of_kind = sorted((m for m in matches if m.kind == kind), key=lambda m: (m.start, -m.end, m.detail))
        new = _drop_overlapping(of_kind, covered)
        covered = sorted(covered + [(match.start, match.end) for match in new])
        selected += new
    return sorted(selected, key=lambda m: m.start)


def _join_overlapping(matches: Iterable[TextMatch]) -> list[TextMatch]:
    """Return the matches, joined where matches of one kind overlap."""
    joined: list[TextMatch] = []
    last_of_kind: dict[FindingKind, int] = {}
    for match in sorted(matches, key=lambda m: (m.start, -m.end, m.detail)):
        index = last_of_kind.get(match.kind)
        if index is not None and match.start < joined[index].end:
            joined[index] = replace(joined[index], end=max(joined[index].end, match.end))
            continue
        last_of_kind[match.kind] = len(joined)
        joined.append(match)
    return joined


def _drop_overlapping(matches: list[TextMatch], covered: list[tuple[int, int]]) -> list[TextMatch]:
    """Return the matches that overlap neither an interval of `covered` nor an earlier match; both lists are sorted."""
    selected: list[TextMatch] = []
    index = last_end = 0
    for match in matches:
        while index < len(covered) and covered[index][1] <= match.start:
            index += 1
        is_free = index == len(covered) or match.end <= covered[index][0]
        if is_free and match.start >= last_end:
            selected.append(match)
            last_end = match.end
    return selected
