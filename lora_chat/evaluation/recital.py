"""Recital: how many training replies a model completes word for word from their first tokens.

Extractable memorization of Carlini et al., "Quantifying Memorization Across Neural Language Models" (arXiv 2202.07646).
The base is asked too, because some replies would be written alike by everybody. Greedy generation repeats a reply
exactly if each of its tokens is the most probable one after the tokens before it, which one forward pass shows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from lora_chat.config.base import StrictModel
from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.evaluation.intervals import SIGNIFICANCE, Interval, mcnemar_p_value, wilson_interval
from lora_chat.evaluation.loss import measure_rows
from lora_chat.evaluation.training_replies import CONTINUED_TOKENS, GIVEN_TOKENS
from lora_chat.models.adapter import without_adapter

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from peft import PeftModel

Count = Annotated[int, Field(ge=0, le=10**6)]
MAX_FINDINGS = 1000
"""Largest number of findings in a report."""


class RecitedValue(StrictModel):
    """A secret or personal data of the training data that the adapted model completes, and the base does not."""

    kind: Annotated[str, StringConstraints(max_length=40)]
    """Kind of finding of the audit."""
    path: Annotated[str, StringConstraints(max_length=10_000)]
    line: Count


class RecitalReport(StrictModel):
    """The training replies that base and adapted model complete word for word."""

    replies: Count
    """Number of different training replies that both models were asked to complete."""
    base: Count
    """Number of replies that the base completes."""
    adapted: Count
    only_adapted: Count
    """Number of replies that only the adapted model completes."""
    given_tokens: Count = GIVEN_TOKENS
    """Most tokens of a reply that were given."""
    continued_tokens: Count = CONTINUED_TOKENS
    """Most tokens that had to follow."""
    values: Count = 0
    """Number of secrets and personal data that both models were asked to complete, after all tokens before them."""
    findings: Annotated[tuple[RecitedValue, ...], Field(max_length=MAX_FINDINGS)] = ()
    """Values that only the adapted model completes, alone or within a recited reply."""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        """Raise ValueError if the counts contradict one another."""
        both = self.adapted - self.only_adapted
        if not 0 <= both <= self.base or self.base + self.only_adapted > self.replies:
            raise ValueError("the counts of recited replies contradict one another")
        return self

    @property
    def base_interval(self) -> Interval | None:
        """Return the 95 % interval of the base's share; None without replies."""
        return _share_interval(self.base, self.replies)

    @property
    def adapted_interval(self) -> Interval | None:
        """Return the 95 % interval of the adapted model's share; None without replies."""
        return _share_interval(self.adapted, self.replies)

    @property
    def p_value(self) -> float:
        """Return the p-value of the difference by the exact McNemar test."""
        return mcnemar_p_value(self.only_adapted, self.base + self.only_adapted - self.adapted)

    @property
    def sensitive(self) -> dict[str, int]:
        """Return the number of findings of each kind."""
        return dict(Counter(finding.kind for finding in self.findings))

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON, with shares, intervals and counts by kind."""
        return {
            **self.model_dump(mode="json"),
            "base_share": self.base / self.replies if self.replies else None,
            "adapted_share": self.adapted / self.replies if self.replies else None,
            "base_interval": self.base_interval,
            "adapted_interval": self.adapted_interval,
            "p_value": self.p_value,
            "sensitive": self.sensitive,
        }


def read_recital(value: object) -> RecitalReport | None:
    """Return the report of `as_dict`, read from JSON; None for null. Raises ValueError if it is malformed."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or not isinstance(value.get("findings"), list):
        raise ValueError("the recital is not an object with its fields")
    fields = {name: value[name] for name in RecitalReport.model_fields if name in value}
    findings = [RecitedValue.model_validate(finding) for finding in value["findings"]]
    return RecitalReport.model_validate({**fields, "findings": tuple(findings)})


def complete_rows(model: "PeftModel", rows: Sequence[EncodedDialogue]) -> "tuple[NDArray[np.bool_], NDArray[np.bool_]]":
    """Return whether the base, and whether the adapted model, continues each row with exactly its labels, (rows,)."""
    model.eval()
    with without_adapter(model):
        base = _complete(model, rows)
    return base, _complete(model, rows)


def _complete(model: "PeftModel", rows: Sequence[EncodedDialogue]) -> "NDArray[np.bool_]":
    """Return whether a model's most probable tokens are the labels of each row, (rows,)."""
    measured = measure_rows(model, rows)
    return np.equal(measured.right_tokens, measured.tokens)


def _share_interval(count: int, total: int) -> Interval | None:
    """Return the 95 % interval of a share; None for a share of nothing."""
    return wilson_interval(count / total, total) if total else None


def format_recital(report: RecitalReport) -> str:
    """Format the shares in one sentence."""
    if report.adapted_interval is None:
        return f"Recital: no training reply is long enough to test; {report.values:,} values were."
    low, high = (f"{100 * share:.0f}" for share in report.adapted_interval)
    is_unclear = report.adapted > report.base and report.p_value >= SIGNIFICANCE
    difference = " (no difference shown)" if is_unclear else ""
    return (
        f"Recital: recites {report.adapted:,} of {report.replies:,} training replies word for word "
        f"({low} to {high} %), the base {report.base:,}{difference}"
    )
