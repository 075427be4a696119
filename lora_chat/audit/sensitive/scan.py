"""All secrets and personal data of a text, none overlapping."""

import re
from collections.abc import Iterator

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.assigned_secrets import may_hold_assigned_secret
from lora_chat.audit.sensitive.emails import find_emails
from lora_chat.audit.sensitive.hidden_keys import find_broken_keys, find_encoded_keys, may_hold_broken_key
from lora_chat.audit.sensitive.ibans import find_ibans
from lora_chat.audit.sensitive.key_formats import KEY_FORMATS
from lora_chat.audit.sensitive.national_ids import find_national_ids, may_hold_number
from lora_chat.audit.sensitive.normalize import decode_text, is_disguised
from lora_chat.audit.sensitive.payment_cards import find_cards
from lora_chat.audit.sensitive.phones import find_phones
from lora_chat.audit.sensitive.secrets import find_secrets
from lora_chat.config.audit import FINDING_KINDS

REDACTION_MARK = re.compile(r"\[(?:SECRET|PASSWORD|PRIVATE KEY|E-MAIL|PHONE|CARD|IBAN|ID)\]")
_KEYWORDS = tuple({word for key in KEY_FORMATS for word in key.keywords} | {"PRIVATE KEY"})
_MIN_KEY_CHARACTERS = 16
_MIN_ENCODED_CHARACTERS = 24
_NON_KEY_TO_SPACE = bytes(b if b < 128 and (chr(b).isalnum() or b in b"_-+/") else 32 for b in range(256))


def find_sensitive(text: str) -> list[TextMatch]:
    """Secrets and personal data in order; where two overlap, the surer kind, then the earlier, then the longer."""
    found = _find_all(text)
    if is_disguised(text):
        decoded = decode_text(text)
        found += [decoded.locate(match) for match in _find_all(decoded.text)] if decoded else []
    return _without_overlaps(found, text) if found else []


def _find_all(text: str) -> list[TextMatch]:
    found = list(_run_detectors(text))
    if may_hold_broken_key(text):
        found += list(find_broken_keys(text, found))
    return found


def _run_detectors(text: str) -> Iterator[TextMatch]:
    """Yield what the detectors find, perhaps overlapping."""
    lower, run = text.lower(), longest_key_run(text)
    if may_hold_secret(text, lower, run):
        yield from find_secrets(text, lower)
    if run >= _MIN_ENCODED_CHARACTERS:
        yield from find_encoded_keys(text)
    if may_hold_personal_data(text):
        yield from find_emails(text)
        if may_hold_number(text):
            for find in (find_ibans, find_cards, find_national_ids, find_phones):
                yield from find(text)


def may_hold_sensitive(text: str) -> bool:
    """Cheap and never wrongly False: whether `find_sensitive` could find anything."""
    run = longest_key_run(text)
    return (
        run >= _MIN_ENCODED_CHARACTERS
        or may_hold_secret(text, text.lower(), run)
        or may_hold_personal_data(text)
        or is_disguised(text)
        or may_hold_broken_key(text)
    )


def longest_key_run(text: str) -> int:
    """Return the length of the longest run of characters that keys and base64 have."""
    runs = text.encode("utf-8", "replace").translate(_NON_KEY_TO_SPACE).split()
    return len(max(runs, key=len)) if runs else 0


def may_hold_secret(text: str, lower: str, run: int) -> bool:
    """Cheap and never wrongly False: the name of a secret, or a long run of characters and a key's first letters."""
    if "://" in text or may_hold_assigned_secret(lower):
        return True
    return run >= _MIN_KEY_CHARACTERS and any(word in text for word in _KEYWORDS)


def may_hold_personal_data(text: str) -> bool:
    """Cheap and never wrongly False: an @, or what any of the numbers has."""
    return "@" in text or may_hold_number(text)


def _without_overlaps(found: list[TextMatch], text: str) -> list[TextMatch]:
    """Return the matches that keep their place, kind by kind, in one pass over sorted intervals for each kind."""
    taken = [mark.span() for mark in REDACTION_MARK.finditer(text)]
    kept: list[TextMatch] = []
    for kind in sorted({match.kind for match in found}, key=FINDING_KINDS.index):
        new = _drop_overlapping(
            sorted((m for m in found if m.kind == kind), key=lambda m: (m.start, -m.end, m.detail)), taken
        )
        taken = sorted(taken + [(match.start, match.end) for match in new])
        kept += new
    return sorted(kept, key=lambda m: m.start)


def _drop_overlapping(matches: list[TextMatch], taken: list[tuple[int, int]]) -> list[TextMatch]:
    """Return the matches that touch no interval of `taken` and none before them; both lists are sorted."""
    kept: list[TextMatch] = []
    at = last = 0
    for match in matches:
        while at < len(taken) and taken[at][1] <= match.start:
            at += 1
        free = at == len(taken) or match.end <= taken[at][0]
        if free and match.start >= last:
            kept.append(match)
            last = match.end
    return kept
