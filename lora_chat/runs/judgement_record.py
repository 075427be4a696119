"""Records of the judgement log: votes on two replies, retractions, and pairs with equal replies.

Every line is checked as if a stranger had written it, because a run folder may come from one.
"""

import hashlib
import json
from collections.abc import Hashable, Sequence
from datetime import datetime, timezone
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, StringConstraints, TypeAdapter, model_validator
from typing_extensions import Self

from lora_chat.config.base import StrictModel
from lora_chat.config.generation_section import GenerationSection

RECORD_VERSION = 1
MAX_NOTE_CHARACTERS = 2_000
MAX_NAME_CHARACTERS = 200
MAX_JUDGE_CHARACTERS = 64
Side: TypeAlias = Literal["a", "b"]
Choice: TypeAlias = Literal["left", "right", "tie", "both bad"]
Winner: TypeAlias = Literal["a", "b", "tie", "both bad"]
CHOICES: tuple[Choice, ...] = ("left", "right", "tie", "both bad")
"""Answers that a judge can give to a pair."""
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_ONE_LINE = r"^[^\x00-\x1f\x7f]+$"
JudgeName = Annotated[str, StringConstraints(pattern=_ONE_LINE, min_length=1, max_length=MAX_JUDGE_CHARACTERS)]
NoteText = Annotated[str, StringConstraints(max_length=MAX_NOTE_CHARACTERS)]
_Time = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]


class JudgedModel(StrictModel):
    """One of the two models of a comparison."""

    name: Annotated[str, StringConstraints(pattern=_ONE_LINE, min_length=1, max_length=MAX_NAME_CHARACTERS)]
    adapter: _Digest | None
    """SHA-256 of the adapter's weights; None for the bare base."""


class JudgedSettings(StrictModel):
    """The settings that decide a reply beside its prompt and its model."""

    max_new_tokens: Annotated[int, Field(ge=1, le=2**31)]
    generation: GenerationSection
    precision: Annotated[str, StringConstraints(pattern=r"^[a-z0-9, ]{1,60}$")]
    """Quantization mode and dtype of the base."""


class JudgedComparison(StrictModel):
    """The two models and the settings that votes belong to. Votes of different comparisons are never mixed."""

    base: _Digest
    """SHA-256 of the base's weights."""
    a: JudgedModel
    b: JudgedModel
    settings: JudgedSettings

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        """Raise ValueError if both models are the same."""
        if self.a.adapter == self.b.adapter:
            raise ValueError("both models of a comparison are the same")
        return self

    @property
    def reversed(self) -> "JudgedComparison":
        """Return the comparison with its models exchanged."""
        return self.model_copy(update={"a": self.b, "b": self.a})

    @property
    def key(self) -> Hashable:
        """Return a key that is equal for the same weights and settings, whatever the names and the order are."""
        return self.base, frozenset((self.a.adapter, self.b.adapter)), self.settings

    def has_adapter(self, adapter: str, base: str) -> bool:
        """Return whether one of the models is the adapter with these weights on the base with these weights."""
        return self.base == base and adapter in (self.a.adapter, self.b.adapter)


class _PairRecord(StrictModel):
    """The part that all records have."""

    version: Literal[1] = 1
    pair: _Digest
    """Digest of the prompt and both replies, from `digest_pair`."""
    item: Annotated[int, Field(ge=0, le=2**53)]
    """Index of the held-out prompt in its set."""
    comparison: JudgedComparison
    time: _Time


class Vote(_PairRecord):
    """The vote of a judge on two replies."""

    kind: Literal["vote"] = "vote"
    left: Side
    """Model whose reply was on the left."""
    choice: Choice
    winner: Winner
    """The choice by model, which follows from `left` and `choice`."""
    note: NoteText = ""
    judge: JudgeName | None = None

    @model_validator(mode="after")
    def _check_winner(self) -> Self:
        """Raise ValueError if the winner does not follow from the choice."""
        if self.winner != find_winner(self.left, self.choice):
            raise ValueError("the winner does not follow from the choice")
        return self


class Retraction(_PairRecord):
    """The withdrawal of a judge's vote on two replies."""

    kind: Literal["retraction"] = "retraction"
    judge: JudgeName | None = None


class EqualReplies(_PairRecord):
    """A pair that was not shown because both replies are the same text."""

    kind: Literal["equal"] = "equal"


JudgementRecord: TypeAlias = Vote | Retraction | EqualReplies
_RECORD: TypeAdapter[JudgementRecord] = TypeAdapter(Annotated[JudgementRecord, Field(discriminator="kind")])


def find_winner(left: Side, choice: Choice) -> Winner:
    """Return the model that a choice prefers, or the choice if it prefers neither."""
    if choice == "tie" or choice == "both bad":
        return choice
    other: Side = "b" if left == "a" else "a"
    return left if choice == "left" else other


def digest_pair(comparison: JudgedComparison, prompt_ids: Sequence[int], reply_a: str, reply_b: str) -> str:
    """Return the digest of a prompt and both replies with their models, whatever the order of the models is."""
    sides = sorted([[comparison.a.adapter or "", reply_a], [comparison.b.adapter or "", reply_b]])
    text = json.dumps(["pair 1", comparison.base, list(prompt_ids), sides], separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def format_time() -> str:
    """Return the present time in UTC in the form of a record."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def encode_record(record: JudgementRecord) -> bytes:
    """Return a record as one line of ASCII with its line feed."""
    fields = record.model_dump(mode="json")
    return (json.dumps(fields, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")


def decode_record(value: object) -> JudgementRecord:
    """Return the record of a JSON value. Raise ValueError if it is not one of this version."""
    return _RECORD.validate_python(value)
