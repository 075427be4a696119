"""Strict models of the figures in a receipt; figures that no run can give, or that do not add up, are refused.

The figures are claims of the sender. The bounds belong to version 1 of the receipt and must not become tighter, because
parcels that were packed under them must always open.
"""

import math
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints, model_validator
from typing_extensions import Self

from lora_chat.config.base import StrictModel
from lora_chat.export.parity.compare import ParityReport

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
BASE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$"
Sha256Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ShortText = Annotated[str, StringConstraints(max_length=200)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Proportion = Annotated[float, Field(ge=0, le=1)]
Loss = Annotated[float, Field(ge=0, le=10_000)]
"""Loss, in nats per supervised token. A model that has diverged completely stays far below the bound."""
CountKey = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,39}$")]

_ROUNDING = 1e-5
"""Largest negative KL divergence that rounding in float32 can give."""
KlDivergence = Annotated[float, Field(ge=-_ROUNDING, le=10_000)]
MAX_STEPS = 10**8
_MAX_STEPS_PER_SECOND = 10_000
_MAX_TOKENS_PER_SECOND = 10**9
PARITY_TOLERANCES = {
    "mean_kl": 1e-2,
    "same_top_token": 0.92,
    "equal_replies": 0.25,
    "loss_rise": 0.02,
    "share_of_control": 0.5,
}
"""Tolerances of the parity check of a PEFT adapter in version 1; `export/parity/tolerances.py` gives the reasons."""


class SourceReceipt(StrictModel):
    """The counts of one data source: how many of its lines were accepted, blank, refused or dropped."""

    name: ShortText
    """Name of the source without its folder."""
    weight: Annotated[float, Field(gt=0, le=100)]
    formats: tuple[CountKey, ...]
    counts: dict[CountKey, Count]

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if the counts contradict one another."""
        counts = self.counts
        parts = [counts[key] for key in ("accepted", "blank", "refused") if key in counts]
        if "lines" in counts and len(parts) == 3 and sum(parts) + counts.get("dropped", 0) != counts["lines"]:
            raise ValueError("lines are not accepted + blank + refused + dropped")
        for part, whole in _ORDERED_COUNTS:
            if part in counts and whole in counts and counts[part] > counts[whole]:
                raise ValueError(f"more {part} than {whole}")
        return self


_ORDERED_COUNTS = (
    *((part, "lines") for part in ("accepted", "blank", "refused", "dropped")),
    ("cut", "dialogues"),
    ("dialogues", "rows"),
    ("stops", "replies"),
    ("thoughtless", "replies"),
    ("supervised_tokens", "tokens"),
    ("longest", "tokens"),
)
"""Pairs of counts of which the first cannot exceed the second."""


class DataReceipt(StrictModel):
    """Counts and digests of the training and validation data, without its text."""

    rows: Sha256Digest | None
    """SHA-256 of the token ids and labels in their order; None for a run of an older version."""
    held_out: Sha256Digest | None
    """SHA-256 of the test files in the run folder, or of the validation files; None if the run has neither."""
    train_dialogues: Annotated[Count, Field(ge=1)]
    train_rows: Annotated[Count, Field(ge=1)]
    validation_dialogues: Count
    """Number of held-out dialogues, for validation and test together."""
    duplicates: Count
    sources: Annotated[tuple[SourceReceipt, ...], Field(max_length=10_000)]
    audit: dict[CountKey, Count]
    """Number of findings of each kind in the audit. The findings themselves stay in the run folder."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if there are more dialogues or rows than the sources have."""
        dialogues = [source.counts.get("dialogues") for source in self.sources]
        known = [count for count in dialogues if count is not None]
        if self.sources and len(known) == len(dialogues):
            for name in ("train_dialogues", "duplicates"):
                if getattr(self, name) > sum(known):
                    raise ValueError(f"more {name} than dialogues in the sources")
        max_rows = [
            source.counts["rows"] * math.ceil(source.weight) for source in self.sources if "rows" in source.counts
        ]
        if self.sources and len(max_rows) == len(self.sources) and self.train_rows > sum(max_rows):
            raise ValueError("more train_rows than the rows of the sources allow")
        return self


class TrainingReceipt(StrictModel):
    """Steps, tokens and duration of the training; an interrupted run has only its last step, and 0 elsewhere."""

    steps: Annotated[int, Field(ge=0, le=MAX_STEPS)]
    planned_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] | None
    supervised_tokens: Count
    seconds: Annotated[float, Field(ge=0, le=1e10)]

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if steps, tokens and seconds contradict one another."""
        if self.planned_steps is None and not self.seconds and not self.supervised_tokens:
            return self
        if self.planned_steps is not None and self.steps > self.planned_steps:
            raise ValueError("more steps than planned")
        if (self.steps > 0) != (self.supervised_tokens > 0):
            raise ValueError("steps without tokens, or tokens without steps")
        if self.steps > _MAX_STEPS_PER_SECOND * self.seconds:
            raise ValueError("more steps than the seconds allow")
        if self.supervised_tokens > _MAX_TOKENS_PER_SECOND * self.seconds:
            raise ValueError("more tokens than the seconds allow")
        return self


class MetricPairReceipt(StrictModel):
    """One metric of the base and of the adapted model."""

    base: float
    adapted: float


class LossReceipt(MetricPairReceipt):
    """Validation loss of base and adapted model, in nats per supervised token."""

    base: Loss
    adapted: Loss


class FactsReceipt(MetricPairReceipt):
    """Share of questions with a correct answer, 0 to 1."""

    base: Proportion
    adapted: Proportion
    questions: Annotated[int, Field(ge=1, le=10**6)]

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError unless each share is a whole number of questions."""
        for share in (self.base, self.adapted):
            if abs(share * self.questions - round(share * self.questions)) > 1e-6:
                raise ValueError(f"{share:g} is not a share of {self.questions} questions")
        return self


class ComparisonReceipt(StrictModel):
    """Base against adapted model on the validation set."""

    validation_loss: LossReceipt
    validation_dialogues: Annotated[Count, Field(ge=1)]
    facts: FactsReceipt | None


class ParityReceipt(ParityReport):
    """The parity report of the adapter as PEFT loads it, with the bounds of version 1."""

    model_config = ConfigDict(allow_inf_nan=False)

    what: Annotated[str, StringConstraints(pattern=r"^PEFT adapter$")]
    reader: Annotated[str, StringConstraints(pattern=r"^PEFT [0-9][0-9a-z.+]{0,39}$")]
    dialogues: Annotated[Count, Field(ge=1)]
    tokens: Annotated[Count, Field(ge=1)]
    mean_kl: KlDivergence
    largest_kl: KlDivergence
    largest_logit_difference: Annotated[float, Field(ge=0, le=1e6)]
    same_top_token: Proportion
    control_kl: KlDivergence
    loss_adapted: Loss
    loss_delivered: Loss
    replies: Count
    reply_tokens: Count
    equal_replies: Proportion
    failures: Annotated[tuple[ShortText, ...], Field(max_length=20)]
    accepted: bool

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError if figures contradict one another, or miss their tolerance without a stated failure."""
        if self.accepted != bool(self.failures):
            raise ValueError(
                "a failed parity check was not accepted" if self.failures else "accepted without a failed parity check"
            )
        if self.mean_kl > self.largest_kl + _ROUNDING:
            raise ValueError("mean_kl is above largest_kl")
        if self.replies > self.dialogues:
            raise ValueError("more replies than dialogues")
        if self.tokens < self.dialogues:
            raise ValueError("fewer tokens than dialogues")
        if not self.accepted and (exceeded := self._exceeded_tolerance()):
            raise ValueError(f"{exceeded} exceeds its tolerance, and no failure is stated")
        return self

    def _exceeded_tolerance(self) -> str | None:
        """Return the name of a figure that misses its tolerance; None if all are within."""
        if self.mean_kl > PARITY_TOLERANCES["mean_kl"]:
            return "mean_kl"
        if self.loss_delivered - self.loss_adapted > PARITY_TOLERANCES["loss_rise"]:
            return "loss_delivered"
        if self.equal_replies < PARITY_TOLERANCES["equal_replies"]:
            return "equal_replies"
        if self.largest_kl == self.largest_logit_difference == 0:
            return None  # equal logits: the figures below cannot differ
        if self.same_top_token < PARITY_TOLERANCES["same_top_token"]:
            return "same_top_token"
        return None if self.mean_kl < PARITY_TOLERANCES["share_of_control"] * self.control_kl else "control_kl"
