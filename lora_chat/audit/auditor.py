"""Goes through dialogues once and remembers little of each."""

from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from lora_chat.audit.checks.abusive_language import find_abuse
from lora_chat.audit.checks.markup import MarkupDetector, find_template_code
from lora_chat.audit.checks.replies import ReplyCounter, is_empty, is_repetitive
from lora_chat.audit.checks.source_balance import Balance
from lora_chat.audit.duplicates.near_duplicates import TwinFinder
from lora_chat.audit.masking import make_excerpt, make_opening
from lora_chat.audit.report import KINDS, AuditReport, Finding, Kind, Match, Split
from lora_chat.audit.sensitive.scan import find_sensitive, may_hold_anything
from lora_chat.audit.text_fields import Piece, split_pieces
from lora_chat.config.audit import AuditSection
from lora_chat.data.dialogue import Dialogue

SHOWN = 20
"""Findings of a kind that a report shows; the rest are counted."""


class Auditor:
    """Takes dialogues one by one; what it keeps of each is about 0.5 kB, whatever its length."""

    def __init__(self, policy: AuditSection, control_tokens: Collection[str] = ()) -> None:
        """`control_tokens` are the base's special tokens as the tokenizer spells them."""
        self._policy = policy
        self._looked_for = frozenset(kind for kind in KINDS if policy.action(kind) != "ignore")
        self._markup = MarkupDetector(control_tokens)
        self._counts: Counter[Kind] = Counter()
        self._findings: dict[Kind, list[Finding]] = {kind: [] for kind in KINDS}
        self._twins = TwinFinder()
        self._replies = ReplyCounter()
        self._balance = Balance()
        self._paths: dict[str, int] = {}
        self._irreplaceable: set[Kind] = set()
        self._path_of, self._line_of = array("I"), array("I")
        self._openings: list[str] = []

    def add(self, dialogue: Dialogue, split: Split = "train") -> None:
        """Look at one dialogue, once."""
        pieces = split_pieces(dialogue)
        whole = "\n".join(piece.text for piece in pieces)
        sensitive = [find_sensitive(piece.text) for piece in pieces] if may_hold_anything(whole) else [[]] * len(pieces)
        self._look_into_texts(dialogue, pieces, sensitive, whole)
        opening = next(
            (i for i, p in enumerate(pieces) if p.message and dialogue.messages[p.message - 1].role == "user"), 0
        )
        self._openings.append(make_opening(pieces[opening].text, sensitive[opening]) if pieces else "")
        self._path_of.append(self._paths.setdefault(dialogue.path, len(self._paths)))
        self._line_of.append(dialogue.line)
        self._look_at_replies(dialogue)
        self._twins.add(dialogue, split)
        if split == "train":
            self._balance.add(dialogue)

    def add_text(self, text: str, path: str, line: int) -> None:
        """Look at a text that is no part of a dialogue, such as a question."""
        hidden = find_sensitive(text)
        for match in (*hidden, *self._plain_matches(text)):
            self._count(Dialogue((), line, path=path), Piece(0, text), match, hidden)

    def add_code(self, text: str, path: str, line: int) -> None:
        """Look for secrets and personal data in a line of a template, where none can be replaced by a mark."""
        hidden = find_sensitive(text)
        for match in hidden:
            if match.kind != "possible_secret":  # code assigns tokens all the time
                self._irreplaceable.add(match.kind)
                self._count(Dialogue((), line, path=path), Piece(0, text), match, hidden)

    def report(self) -> AuditReport:
        """What was found so far."""
        counts, findings = self._counts.copy(), {kind: list(found) for kind, found in self._findings.items()}
        for finding in (*self._find_twins(), *self._find_repeated(), *self._find_imbalance()):
            if finding.kind in self._looked_for:
                counts[finding.kind] += 1
                findings[finding.kind].append(finding)
        found = tuple(kind for kind in KINDS if counts[kind])
        return AuditReport(
            dialogues=len(self._openings),
            counts={kind: counts[kind] for kind in found},
            findings=tuple(finding for kind in found for finding in findings[kind][:SHOWN]),
            shares=self._balance.shares(),
            refused=tuple(kind for kind in found if self._is_refused(kind)),
            redacted=tuple(
                kind for kind in found if self._policy.action(kind) == "redact" and not self._is_refused(kind)
            ),
        )

    def _is_refused(self, kind: Kind) -> bool:
        """Return whether the policy refuses a kind, or redacts it where that cannot be done."""
        action = self._policy.action(kind)
        return action == "refuse" or (action == "redact" and kind in self._irreplaceable)

    def _look_into_texts(
        self, dialogue: Dialogue, pieces: Sequence[Piece], sensitive: Sequence[Sequence[Match]], whole: str
    ) -> None:
        plain = next(self._plain_matches(whole), None) is not None
        for piece, hidden in zip(pieces, sensitive, strict=True):
            for match in (*hidden, *(self._plain_matches(piece.text) if plain else ())):
                if match.start >= piece.start:
                    self._count(dialogue, piece, match, hidden)

    def _plain_matches(self, text: str) -> Iterator[Match]:
        yield from find_abuse(text)
        yield from self._markup.find_tokens(text)
        yield from find_template_code(text)

    def _count(self, dialogue: Dialogue, piece: Piece, match: Match, hidden: Sequence[Match]) -> None:
        if match.kind not in self._looked_for:
            return
        self._counts[match.kind] += 1
        if self._counts[match.kind] <= SHOWN:
            excerpt = make_excerpt(piece.text, match, hidden)
            place = (dialogue.path, dialogue.line, piece.message)
            self._findings[match.kind].append(Finding(match.kind, *place, match.detail, excerpt))

    def _look_at_replies(self, dialogue: Dialogue) -> None:
        for number, message in enumerate(dialogue.messages, 1):
            if message.role != "assistant" or not message.trained or not message.content:
                continue
            reply = message.content
            if is_empty(reply) and not message.tool_calls:
                self._count(dialogue, Piece(number, reply), Match("empty_reply", "says nothing", 0, len(reply)), ())
            elif is_repetitive(reply):
                match = Match("repetitive_reply", "goes round in circles", 0, 40)
                self._count(dialogue, Piece(number, reply), match, find_sensitive(reply))
            self._replies.add(reply, (dialogue.path, dialogue.line, number))

    def _find_twins(self) -> Iterator[Finding]:
        paths = list(self._paths)
        for twin in self._twins.find():
            other = f"{paths[self._path_of[twin.other]]}:{self._line_of[twin.other]}"
            exact = twin.kind in ("leak", "exact_duplicate")
            detail = "equal" if exact else f"about {twin.similarity:.0%} alike"
            place = (paths[self._path_of[twin.dialogue]], self._line_of[twin.dialogue], 0)
            yield Finding(twin.kind, *place, detail, self._openings[twin.dialogue], other)

    def _find_repeated(self) -> Iterator[Finding]:
        for reply in self._replies.repeated():
            detail = f"{reply.times} times, {reply.share:.0%} of all replies"
            yield Finding("repeated_reply", *reply.place, detail, make_opening(reply.text, find_sensitive(reply.text)))

    def _find_imbalance(self) -> Iterator[Finding]:
        path = self._balance.too_large()
        if path is not None:
            yield Finding("imbalance", path, 0, 0, f"{self._balance.shares()[path]:.0%} of what is learned")
