"""Strict models of the measurements beside the metrics in a receipt of version 4.

They are general abilities, recital, overlap with the training data, dependence on prompts, and the kept step.
"""

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from lora_chat.config.base import StrictModel
from lora_chat.evaluation.general.report import GeneralReport
from lora_chat.evaluation.intervals import MIN_ITEMS
from lora_chat.evaluation.metrics import Word
from lora_chat.evaluation.overlap import OverlapReport
from lora_chat.evaluation.recital import RecitalReport
from lora_chat.sharing.figures import Count, CountKey, Loss, Proportion, Sha256Digest

Figure = Annotated[float, Field(ge=-1e300, le=1e300)]
FigureInterval = tuple[Figure, Figure]
Points = Annotated[float, Field(ge=-100, le=100)]


class GeneralReceipt(StrictModel):
    """How general abilities changed, in points of 100."""

    items: Annotated[int, Field(ge=1, le=10**6)]
    available: Annotated[int, Field(ge=1, le=10**6)]
    shipped: bool
    """Whether the items are of the set that lora_chat ships."""
    set_digest: Sha256Digest
    base_right: Count
    adapted_right: Count
    difference: Points
    difference_interval: tuple[Points, Points]
    p_value: Proportion
    word: Word
    equal_replies: Proportion
    equal_leading_tokens: Proportion

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if the counts and the word contradict one another."""
        if max(self.base_right, self.adapted_right) > self.items or self.items > self.available:
            raise ValueError("more right replies than items, or more items than available")
        difference = 100 * (self.adapted_right - self.base_right) / self.items
        if abs(difference - self.difference) > 1e-6:
            raise ValueError("the difference is not that of the right replies")
        if {"better": difference <= 0, "worse": difference >= 0, "withheld": True}.get(self.word, False):
            raise ValueError(f"{self.word} contradicts the right replies")
        return self

    @property
    def clause(self) -> str:
        """Return the result in one clause, as the comparison says it."""
        fields = self.model_dump(exclude={"shipped"})
        return GeneralReport(**fields, set_name="", kinds=(), languages=(), answers=()).clause


class RecitalReceipt(StrictModel):
    """How many training replies the models complete word for word, without files and lines."""

    replies: Count
    base: Count
    adapted: Count
    only_adapted: Count
    given_tokens: Count
    continued_tokens: Count
    values: Count
    sensitive: Annotated[dict[CountKey, Count], Field(max_length=100)]
    """Number of secrets and personal data that only the adapted model completes, by kind."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if the counts contradict one another."""
        self.as_report()
        return self

    def as_report(self) -> RecitalReport:
        """Return the counts in the form of a comparison."""
        return RecitalReport(**self.model_dump(exclude={"sensitive"}))


class OverlapReceipt(StrictModel):
    """How many evaluated items were trained on."""

    items: Count
    exact: Count
    near: Count
    same_question: Count
    same_reply: Count
    questions: Count
    seen_questions: Count

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if more items were seen than there are."""
        if self.exact + self.near + self.same_question + self.same_reply > self.items:
            raise ValueError("more dialogues were trained on than were looked for")
        if self.seen_questions > self.questions:
            raise ValueError("more questions were trained on than were looked for")
        return self

    def as_report(self) -> OverlapReport:
        """Return the counts in the form of a comparison."""
        return OverlapReport(**self.model_dump())


class PromptControlReceipt(StrictModel):
    """The loss of replies under their own prompts and under others, in nats per token."""

    replies: Annotated[int, Field(ge=MIN_ITEMS, le=10**6)]
    own: Loss
    other: Loss
    difference_interval: FigureInterval
    p_value: Proportion


class KeptStepReceipt(StrictModel):
    """The step whose adapter was kept, and the last one that was trained."""

    step: Count
    last_step: Count

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if the kept step was not trained."""
        if self.step > self.last_step:
            raise ValueError("the kept step comes after the last one")
        return self
