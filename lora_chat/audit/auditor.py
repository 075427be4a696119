"""Goes through dialogues once and remembers little of each."""

from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from lora_chat.audit.checks.abusive_language import find_abuse
from lora_chat.audit.checks.markup import MarkupDetector, find_template_code
from lora_chat.audit.checks.replies import ReplyCounter, is_empty, is_repetitive
from lora_chat.audit.checks.source_balance import SourceBalance
from lora_chat.audit.duplicates.near_duplicates import DuplicateFinder
from lora_chat.audit.excerpts import make_excerpt, make_opening
from lora_chat.audit.report import AuditReport, Finding, Split, TextMatch
from lora_chat.audit.sensitive.scan import find_sensitive, may_hold_sensitive
from lora_chat.audit.text_fields import TextField, list_text_fields
from lora_chat.config.audit import FINDING_KINDS, AuditSection, FindingKind
from lora_chat.data.dialogue import Dialogue

MAX_SHOWN_FINDINGS = 20
"""Findings of a kind that a report shows; the rest are counted."""


class Auditor:
    """Takes dialogues one by one; what it keeps of each is about 0.5 kB, whatever its length."""

    def __init__(self, policy: AuditSection, control_tokens: Collection[str] = ()) -> None:
        """`read_control_tokens` are the base's special tokens as the tokenizer spells them."""
        self._policy = policy
        self._enabled_kinds = frozenset(kind for kind in FINDING_KINDS if policy.action(kind) != "ignore")
        self._markup = MarkupDetector(control_tokens)
        self._counts: Counter[FindingKind] = Counter()
        self._findings: dict[FindingKind, list[Finding]] = {kind: [] for kind in FINDING_KINDS}
        self._duplicates = DuplicateFinder()
        self._replies = ReplyCounter()
        self._balance = SourceBalance()
        self._paths: dict[str, int] = {}
        self._unredactable_kinds: set[FindingKind] = set()
        self._path_numbers, self._line_numbers = array("I"), array("I")
        self._openings: list[str] = []

    def add(self, dialogue: Dialogue, split: Split = "train") -> None:
        """Look at one dialogue, once."""
        pieces = list_text_fields(dialogue)
        joined_text = "\n".join(piece.text for piece in pieces)
        sensitive = (
            [find_sensitive(piece.text) for piece in pieces] if may_hold_sensitive(joined_text) else [[]] * len(pieces)
        )
        self._scan_texts(dialogue, pieces, sensitive, joined_text)
        opening = next(
            (i for i, p in enumerate(pieces) if p.message and dialogue.messages[p.message - 1].role == "user"), 0
        )
        self._openings.append(make_opening(pieces[opening].text, sensitive[opening]) if pieces else "")
        self._path_numbers.append(self._paths.setdefault(dialogue.path, len(self._paths)))
        self._line_numbers.append(dialogue.line)
        self._check_replies(dialogue)
        self._duplicates.add(dialogue, split)
        if split == "train":
            self._balance.add(dialogue)

    def add_text(self, text: str, path: str, line: int) -> None:
        """Look at a text that is no part of a dialogue, such as a question."""
        sensitive_matches = find_sensitive(text)
        for match in (*sensitive_matches, *self._find_content_matches(text)):
            self._add_finding(Dialogue((), line, path=path), TextField(0, text), match, sensitive_matches)

    def add_code(self, text: str, path: str, line: int) -> None:
        """Look for secrets and personal data in a line of a template, where none can be replaced by a mark."""
        sensitive_matches = find_sensitive(text)
        for match in sensitive_matches:
            if match.kind != "possible_secret":  # code assigns tokens all the time
                self._unredactable_kinds.add(match.kind)
                self._add_finding(Dialogue((), line, path=path), TextField(0, text), match, sensitive_matches)

    def report(self) -> AuditReport:
        """What was found so far."""
        counts, findings = self._counts.copy(), {kind: list(found) for kind, found in self._findings.items()}
        for finding in (*self._find_duplicates(), *self._find_repeated(), *self._find_imbalance()):
            if finding.kind in self._enabled_kinds:
                counts[finding.kind] += 1
                findings[finding.kind].append(finding)
        found = tuple(kind for kind in FINDING_KINDS if counts[kind])
        return AuditReport(
            dialogues=len(self._openings),
            counts={kind: counts[kind] for kind in found},
            findings=tuple(finding for kind in found for finding in findings[kind][:MAX_SHOWN_FINDINGS]),
            shares=self._balance.shares(),
            refused=tuple(kind for kind in found if self._is_refused(kind)),
            redacted=tuple(
                kind for kind in found if self._policy.action(kind) == "redact" and not self._is_refused(kind)
            ),
        )

    def _is_refused(self, kind: FindingKind) -> bool:
        """Return whether the policy refuses a kind, or redacts it where that cannot be done."""
        action = self._policy.action(kind)
        return action == "refuse" or (action == "redact" and kind in self._unredactable_kinds)

    def _scan_texts(
        self,
        dialogue: Dialogue,
        pieces: Sequence[TextField],
        sensitive: Sequence[Sequence[TextMatch]],
        joined_text: str,
    ) -> None:
        plain = next(self._find_content_matches(joined_text), None) is not None
        for piece, sensitive_matches in zip(pieces, sensitive, strict=True):
            for match in (*sensitive_matches, *(self._find_content_matches(piece.text) if plain else ())):
                if match.start >= piece.start:
                    self._add_finding(dialogue, piece, match, sensitive_matches)

    def _find_content_matches(self, text: str) -> Iterator[TextMatch]:
        yield from find_abuse(text)
        yield from self._markup.find_tokens(text)
        yield from find_template_code(text)

    def _add_finding(
        self, dialogue: Dialogue, piece: TextField, match: TextMatch, sensitive_matches: Sequence[TextMatch]
    ) -> None:
        if match.kind not in self._enabled_kinds:
            return
        self._counts[match.kind] += 1
        if self._counts[match.kind] <= MAX_SHOWN_FINDINGS:
            excerpt = make_excerpt(piece.text, match, sensitive_matches)
            place = (dialogue.path, dialogue.line, piece.message)
            self._findings[match.kind].append(Finding(match.kind, *place, match.detail, excerpt))

    def _check_replies(self, dialogue: Dialogue) -> None:
        for number, message in enumerate(dialogue.messages, 1):
            if message.role != "assistant" or not message.trained or not message.content:
                continue
            reply = message.content
            if is_empty(reply) and not message.tool_calls:
                self._add_finding(
                    dialogue, TextField(number, reply), TextMatch("empty_reply", "says nothing", 0, len(reply)), ()
                )
            elif is_repetitive(reply):
                match = TextMatch("repetitive_reply", "goes round in circles", 0, 40)
                self._add_finding(dialogue, TextField(number, reply), match, find_sensitive(reply))
            self._replies.add(reply, (dialogue.path, dialogue.line, number))

    def _find_duplicates(self) -> Iterator[Finding]:
        paths = list(self._paths)
        for twin in self._duplicates.find():
            other = f"{paths[self._path_numbers[twin.other]]}:{self._line_numbers[twin.other]}"
            exact = twin.kind in ("leak", "exact_duplicate")
            detail = "equal" if exact else f"about {twin.similarity:.0%} alike"
            place = (paths[self._path_numbers[twin.dialogue]], self._line_numbers[twin.dialogue], 0)
            yield Finding(twin.kind, *place, detail, self._openings[twin.dialogue], other)

    def _find_repeated(self) -> Iterator[Finding]:
        for reply in self._replies.find_repeated():
            detail = f"{reply.occurrences} times, {reply.share:.0%} of all replies"
            yield Finding(
                "repeated_reply", *reply.location, detail, make_opening(reply.text, find_sensitive(reply.text))
            )

    def _find_imbalance(self) -> Iterator[Finding]:
        path = self._balance.dominant_path()
        if path is not None:
            yield Finding("imbalance", path, 0, 0, f"{self._balance.shares()[path]:.0%} of what is learned")
