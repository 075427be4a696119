"""The figures of a receipt. They are the sender's word; what no run can give, or what does not add up, is refused.

The bounds belong to version 1 of the receipt: parcels that were packed under them open for ever.
"""

import math
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from lora_chat.config.base import StrictModel

Sha256Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ShortText = Annotated[str, StringConstraints(max_length=200)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Proportion = Annotated[float, Field(ge=0, le=1)]
Loss = Annotated[float, Field(ge=0, le=10_000)]
"""Nats per supervised token; a model that has diverged completely stays far below the bound."""
CountKey = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,39}$")]

_ROUNDING = 1e-5
"""How far below zero a KL divergence may fall by the rounding of float32."""
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
"""What the proof of a PEFT adapter was allowed when version 1 was written; `delivery/limits.py` gives the reasons."""


class SourceReceipt(StrictModel):
    """The ledger of one source: what became of its lines, in figures."""

    name: ShortText
    """Without its folder."""
    weight: Annotated[float, Field(gt=0, le=100)]
    formats: tuple[CountKey, ...]
    counts: dict[CountKey, Count]

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        counts = self.counts
        parts = [counts[key] for key in ("accepted", "blank", "refused") if key in counts]
        if "lines" in counts and len(parts) == 3 and sum(parts) + counts.get("dropped", 0) != counts["lines"]:
            raise ValueError("lines are not accepted + blank + refused + dropped")
        for less, more in _ORDERED_COUNTS:
            if less in counts and more in counts and counts[less] > counts[more]:
                raise ValueError(f"more {less} than {more}")
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


class DataReceipt(StrictModel):
    """What was trained on and measured with, never its words."""

    rows: Sha256Digest | None
    """sha256 of the token ids and labels in their order; None for a run of an older version."""
    held_out: Sha256Digest | None
    """sha256 of the held-out dialogues as the run keeps them; None where it keeps none."""
    train_dialogues: Annotated[Count, Field(ge=1)]
    train_rows: Annotated[Count, Field(ge=1)]
    validation_dialogues: Annotated[Count, Field(ge=1)]
    duplicates: Count
    sources: Annotated[tuple[SourceReceipt, ...], Field(max_length=10_000)]
    audit: dict[CountKey, Count]
    """How often each kind of finding was seen; what was seen stays with the run."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        read = [source.counts.get("dialogues") for source in self.sources]
        known = [count for count in read if count is not None]
        if self.sources and len(known) == len(read):
            for name in ("train_dialogues", "duplicates"):
                if getattr(self, name) > sum(known):
                    raise ValueError(f"more {name} than dialogues in the sources")
        most = [source.counts["rows"] * math.ceil(source.weight) for source in self.sources if "rows" in source.counts]
        if self.sources and len(most) == len(self.sources) and self.train_rows > sum(most):
            raise ValueError("more train_rows than the rows of the sources allow")
        return self


class TrainingReceipt(StrictModel):
    """What the training took. Of a run that was cut short only its last step is known, all else is 0."""

    steps: Annotated[int, Field(ge=0, le=MAX_STEPS)]
    planned_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] | None
    supervised_tokens: Count
    seconds: Annotated[float, Field(ge=0, le=1e10)]

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
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
    """One measure of the base and of the adapted model."""

    base: float
    adapted: float


class LossReceipt(MetricPairReceipt):
    """Nats per supervised token."""

    base: Loss
    adapted: Loss


class FactsReceipt(MetricPairReceipt):
    """Share of questions answered right, 0 to 1."""

    base: Proportion
    adapted: Proportion
    questions: Annotated[int, Field(ge=1, le=10**6)]

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        for share in (self.base, self.adapted):
            if abs(share * self.questions - round(share * self.questions)) > 1e-6:
                raise ValueError(f"{share:g} is no share of {self.questions} questions")
        return self


class ComparisonReceipt(StrictModel):
    """Base against adapted on what was held out."""

    validation_loss: LossReceipt
    validation_dialogues: Annotated[Count, Field(ge=1)]
    facts: FactsReceipt | None


class ParityReceipt(StrictModel):
    """The adapter opened by plain PEFT, against the adapted model as it was trained (`delivery/proof.py`)."""

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
        if self.accepted != bool(self.failures):
            raise ValueError("a failed proof was not accepted" if self.failures else "nothing was to be accepted")
        if self.mean_kl > self.largest_kl + _ROUNDING:
            raise ValueError("mean_kl is above largest_kl")
        if self.replies > self.dialogues:
            raise ValueError("more replies than dialogues")
        if self.tokens < self.dialogues:
            raise ValueError("fewer tokens than dialogues")
        if not self.accepted and (beyond := self._exceeded_tolerance()):
            raise ValueError(f"{beyond} is beyond its limit, and no failure is stated")
        return self

    def _exceeded_tolerance(self) -> str | None:
        if self.mean_kl > PARITY_TOLERANCES["mean_kl"]:
            return "mean_kl"
        if self.loss_delivered - self.loss_adapted > PARITY_TOLERANCES["loss_rise"]:
            return "loss_delivered"
        if self.equal_replies < PARITY_TOLERANCES["equal_replies"]:
            return "equal_replies"
        if self.largest_kl == self.largest_logit_difference == 0:
            return None  # the same numbers: the measures below have nothing to tell apart
        if self.same_top_token < PARITY_TOLERANCES["same_top_token"]:
            return "same_top_token"
        return None if self.mean_kl < PARITY_TOLERANCES["share_of_control"] * self.control_kl else "control_kl"
