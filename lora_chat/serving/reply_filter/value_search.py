"""The search of a part of a reply for values, and the replacement of the values by marks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lora_chat.audit.known_values import KnownValues
from lora_chat.audit.redaction import redact_text
from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.scan import REDACTION_MARK, find_in_part
from lora_chat.serving.reply_filter.filter_settings import FilterSettings

_MAX_KNOWN_VALUES = 200
"""Maximum number of replaced values that are looked for in the rest of a reply."""
_MAX_ROUNDS = 4
"""Maximum number of rounds, each of which replaces known values and searches again."""
_PERSONAL_MARKS = frozenset({"[E-MAIL]", "[PHONE]", "[CARD]", "[IBAN]", "[ID]"})


@dataclass
class ReplyFindings:
    """The values found in all parts of one reply: how many of each kind, and which ones."""

    counts: Counter[str] = field(default_factory=Counter)
    """Number of finds by kind of the audit. `unchecked` counts parts that were too long to be checked."""
    known: KnownValues = field(default_factory=KnownValues)
    """Values that are replaced again wherever they occur in the rest of the reply."""


class ValueSearch:
    """The search with the settings of a server, for one reply."""

    def __init__(self, settings: FilterSettings, findings: ReplyFindings) -> None:
        self._settings = settings
        self._findings = findings

    def find(self, context: str, text: str, following: str = "") -> list[TextMatch]:
        """Return the values that begin in a text, with offsets in it; `context` and `following` are around it."""
        first, end = len(context), len(context) + len(text)
        whole = context + text + following
        return [
            replace(match, start=max(0, match.start - first), end=min(match.end, end) - first)
            for match in find_in_part(whole, self._settings.kinds)
            if first < match.end and match.start < end and not self._settings.is_allowed(whole[match.start : match.end])
        ]

    def redact(self, contexts: Sequence[str], text: str, following: str = "") -> str:
        """Return a text with marks. Each of `contexts` is a form of the text before it: as written, and as sent."""
        for context in dict.fromkeys(contexts):
            text = self._redact_after(context, text, following)
        for _ in range(_MAX_ROUNDS):  # repeated, because the neighbour of a replaced value may become a finding
            text, count = self._replace_known(text)
            if not count:
                break
            text = self._redact_after(contexts[-1], text, following)
        return text

    def _redact_after(self, context: str, text: str, following: str) -> str:
        """Return a text with marks in place of the values that are found after a context."""
        counts, known = self._findings.counts, self._findings.known

        def find_and_count(whole: str) -> list[TextMatch]:
            matches = self.find(context, whole[len(context) :], following)
            counts.update(match.kind for match in matches)
            return [replace(m, start=m.start + len(context), end=m.end + len(context)) for m in matches]

        is_full = counts.total() >= _MAX_KNOWN_VALUES
        return redact_text(text, self._settings.kinds, context, None if is_full else known, find_and_count)[0]

    def _replace_known(self, text: str) -> tuple[str, int]:
        """Replace values that were found before, also where nothing announces them. Return how many there were."""
        if not self._findings.known:
            return text, 0
        new, count = self._findings.known.replace(text)
        if count:
            marks = Counter(REDACTION_MARK.findall(new)) - Counter(REDACTION_MARK.findall(text))
            for mark, number in marks.items():
                self._findings.counts["personal_data" if mark in _PERSONAL_MARKS else "secret"] += number
        return new, count
