"""Evaluation data that was trained on: its counts, and whether the verdict is withheld because of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from lora_chat.system.sanitize import sanitize_line

MAX_EXACT_SHARE = 0.01
"""Largest share of the items that may be trained on exactly.

Even if the difference of trained items is three standard deviations from the others, 1 % of them move the mean by 0.03
of one. The 95 % interval is wider than that for fewer than about 4,000 items."""
MAX_NEAR_SHARE = 0.1
"""Largest share of the items that may be trained on exactly or nearly.

It is larger because equal frames with other contents, which a task may have on purpose, count as nearly equal."""
MIN_UNSEEN_ITEMS = 20
"""Number of unseen items from which they are compared without the others."""
_MAX_EXAMPLES = 3
"""Maximum number of examples of each kind."""
MeasuredItems = Literal["rows", "questions", "replies"]
"""Items of a metric."""


@dataclass(frozen=True)
class OverlapExample:
    """An item that was trained on."""

    location: str
    """File and line."""
    kind: Literal["exact", "near", "reply", "question"]


@dataclass(frozen=True)
class OverlapReport:
    """How many items of an evaluation were trained on."""

    items: int
    """Number of dialogues and blocks of plain text that were looked for."""
    exact: int = 0
    """Number of items of which every question and reply was trained on."""
    near: int = 0
    """Number of other items that are nearly equal to a training dialogue."""
    same_question: int = 0
    """Number of other items whose questions were trained on, with other replies."""
    same_reply: int = 0
    """Number of other items whose replies were trained on, with other questions."""
    questions: int = 0
    """Number of questions of the evaluation that were looked for."""
    seen_questions: int = 0
    """Number of these that are messages of the user in training."""
    examples: tuple[OverlapExample, ...] = ()
    unseen_rows: tuple[bool, ...] = ()
    """Whether each row of the evaluation belongs to an item that was seen neither exactly nor nearly."""

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON, without its rows."""
        counts = {name: value for name, value in asdict(self).items() if name != "unseen_rows"}
        return {**counts, "withheld": self.withholds_dialogues, "withheld_questions": self.withholds_questions}

    @property
    def unseen(self) -> int:
        """Return the number of items that were seen neither exactly nor nearly."""
        return self.items - self.exact - self.near

    @property
    def withholds_dialogues(self) -> bool:
        """Return whether figures of the dialogues show too little about new ones."""
        return self.exact > MAX_EXACT_SHARE * self.items or self.exact + self.near > MAX_NEAR_SHARE * self.items

    @property
    def withholds_questions(self) -> bool:
        """Return whether figures of the questions show too little about new ones."""
        return self.seen_questions > MAX_EXACT_SHARE * self.questions

    def withholds(self, measured: MeasuredItems) -> bool:
        """Return whether the verdict by a metric of these items is withheld."""
        return self.withholds_questions if measured == "questions" else self.withholds_dialogues

    def explain_withheld(self, measured: MeasuredItems) -> str | None:
        """Return why the verdict by a metric of these items is withheld; None if it is not."""
        if not self.withholds(measured):
            return None
        return self._describe_questions() if measured == "questions" else self._describe_dialogues()

    def format_notes(self, measured: MeasuredItems | None) -> list[str]:
        """Return sentences on items that were trained on, without the reason why a verdict is withheld.

        `measured` are the items of the metric that decides.
        """
        reason = self.explain_withheld(measured) if measured else None
        notes = []
        if self.exact or self.near:
            notes.append(self._describe_dialogues())
        if self.seen_questions:
            notes.append(self._describe_questions())
        if self.same_question:
            notes.append(f"{self.same_question:,} other dialogues have questions of training with other replies.")
        return [note for note in notes if note != reason]

    def _describe_dialogues(self) -> str:
        """Describe how many dialogues were trained on."""
        parts = [f"{self.exact:,} exactly"] if self.exact else []
        parts += [f"{self.near:,} nearly"] if self.near else []
        return f"{self.exact + self.near:,} of {self.items:,} dialogues were trained on ({', '.join(parts)})."

    def _describe_questions(self) -> str:
        """Describe how many questions were trained on."""
        return f"{self.seen_questions:,} of {self.questions:,} questions were trained on."

    def format_examples(self) -> list[str]:
        """Return a line with files and lines of dialogues that were trained on; none if none exist."""
        chosen = [example.location for example in self.examples if example.kind in ("exact", "near")]
        return [f"Trained on: {', '.join(map(sanitize_line, chosen))}"] if chosen else []


def make_overlap_report(
    kinds: Sequence[Literal["exact", "near", "reply", "question"] | None],
    locations: Sequence[str],
    seen_questions: Sequence[bool],
    row_counts: Sequence[int] = (),
) -> OverlapReport:
    """Count how items were seen; `locations` has the file and line of each, and `row_counts` its number of rows."""
    counts = Counter(kinds)
    examples: list[OverlapExample] = []
    shown: Counter[str] = Counter()
    for kind, location in zip(kinds, locations, strict=True):
        is_known = OverlapExample(location, kind) in examples if kind else True  # a text has several blocks
        if kind is not None and not is_known and shown[kind] < _MAX_EXAMPLES:
            shown[kind] += 1
            examples.append(OverlapExample(location, kind))
    return OverlapReport(
        items=len(kinds),
        exact=counts["exact"],
        near=counts["near"],
        same_question=counts["question"],
        same_reply=counts["reply"],
        questions=len(seen_questions),
        seen_questions=sum(seen_questions),
        examples=tuple(examples),
        unseen_rows=tuple(
            kind not in ("exact", "near") for kind, count in zip(kinds, row_counts, strict=False) for _ in range(count)
        ),
    )
