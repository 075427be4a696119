"""The tables of all checks except secrets and personal data. The auditor iterates over them.

A new check is one entry here, a kind of finding in `config/audit.py`, and its function.
"""

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Protocol

from lora_chat.audit.checks.abusive_language import find_abuse
from lora_chat.audit.checks.markup import MarkupDetector, find_template_code
from lora_chat.audit.checks.replies import ReplyCounter, find_empty_reply, find_repetitive_reply, iter_trained_replies
from lora_chat.audit.checks.source_balance import SourceBalance
from lora_chat.audit.duplicates.near_duplicates import DuplicateFinder
from lora_chat.audit.excerpts import make_opening
from lora_chat.audit.report import Finding, Split, TextMatch
from lora_chat.audit.sensitive.scan import find_sensitive
from lora_chat.config.audit import FindingKind
from lora_chat.data.dialogue import Dialogue, Message

TextCheck = Callable[[str], Iterable[TextMatch]]
"""Finder of matches in one text."""
TEXT_CHECKS: dict[FindingKind, Callable[[Collection[str]], TextCheck]] = {
    "abusive_language": lambda _: find_abuse,
    "control_token": lambda control_tokens: MarkupDetector(control_tokens).find_tokens,
    "template_code": lambda _: find_template_code,
}
"""Checks of each text of a dialogue, made for the control tokens of a base."""

REPLY_CHECKS: tuple[Callable[[Message], TextMatch | None], ...] = (find_empty_reply, find_repetitive_reply)
"""Checks of each trained reply. Only the first match counts."""


class DialogueIndex:
    """The location and the opening words of each dialogue, and the share of each file in the trained text."""

    def __init__(self) -> None:
        self.openings: list[str] = []
        """The beginning of the first user message of each dialogue, masked."""
        self.balance = SourceBalance()
        self._path_numbers: dict[str, int] = {}
        self._paths, self._lines = array("I"), array("I")

    def add(self, dialogue: Dialogue, opening: str, split: Split) -> None:
        """Add one dialogue. Only training dialogues count in the trained text."""
        self.openings.append(opening)
        self._paths.append(self._path_numbers.setdefault(dialogue.path, len(self._path_numbers)))
        self._lines.append(dialogue.line)
        if split == "train":
            self.balance.add(dialogue)

    def locations(self) -> list[tuple[str, int]]:
        """Return the file and line of each dialogue, in the order of adding."""
        paths = list(self._path_numbers)
        return [(paths[number], line) for number, line in zip(self._paths, self._lines, strict=True)]


class DatasetCheck(Protocol):
    """A check of all dialogues together."""

    def add(self, dialogue: Dialogue, split: Split) -> None:
        """Read one dialogue."""

    def find(self, index: DialogueIndex) -> Iterator[tuple[Finding, tuple[int, int] | None]]:
        """Yield the findings in the dialogues that were added so far.

        A finding in one dialogue has the numbers of that dialogue and of the one that it repeats.
        """


class _DuplicateCheck:
    """A check for repeated dialogues and for leaks into the validation and test set."""

    def __init__(self) -> None:
        self._finder = DuplicateFinder()
        self.add = self._finder.add

    def find(self, index: DialogueIndex) -> Iterator[tuple[Finding, tuple[int, int] | None]]:
        locations = index.locations()
        for match in self._finder.find():
            other_path, other_line = locations[match.other]
            exact = match.kind in ("leak", "exact_duplicate")
            detail = "equal" if exact else f"about {match.similarity:.0%} alike"
            opening = index.openings[match.dialogue]
            location, repeated = locations[match.dialogue], f"{other_path}:{other_line}"
            finding = Finding(match.kind, *location, 0, detail, opening, twin=repeated)
            yield finding, (match.dialogue, match.other)


class _RepeatedReplyCheck:
    """A check for one reply in many dialogues."""

    def __init__(self) -> None:
        self._replies = ReplyCounter()

    def add(self, dialogue: Dialogue, split: Split) -> None:
        for number, message in iter_trained_replies(dialogue):
            self._replies.add(message.content, (dialogue.path, dialogue.line, number))

    def find(self, index: DialogueIndex) -> Iterator[tuple[Finding, tuple[int, int] | None]]:
        for reply in self._replies.find_repeated():
            detail = f"{reply.occurrences} times, {reply.share:.0%} of all replies"
            opening = make_opening(reply.text, find_sensitive(reply.text))
            yield Finding("repeated_reply", *reply.location, detail, opening), None


class _ImbalanceCheck:
    """A check for a file that outweighs all others."""

    def add(self, dialogue: Dialogue, split: Split) -> None:
        """Do nothing, because the index counts the trained text."""

    def find(self, index: DialogueIndex) -> Iterator[tuple[Finding, tuple[int, int] | None]]:
        path = index.balance.dominant_path()
        if path is not None:
            detail = f"{index.balance.shares()[path]:.0%} of the trained text"
            yield Finding("imbalance", path, 0, 0, detail), None


DATASET_CHECKS: tuple[Callable[[], DatasetCheck], ...] = (_DuplicateCheck, _RepeatedReplyCheck, _ImbalanceCheck)
"""Checks of all dialogues together, in the order of their findings."""
