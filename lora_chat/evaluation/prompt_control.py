"""Whether the replies of an adapted model depend on their prompts, measured with replies under other prompts.

A model that was trained on shuffled prompts and replies, such as columns of different rows, learns the style of the
replies, so that its loss falls. It finds the reply of another dialogue as likely as the right one.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from lora_chat.data.encoding.encode import IGNORE_INDEX, EncodedDialogue
from lora_chat.evaluation.intervals import (
    MIN_ITEMS,
    SIGNIFICANCE,
    Interval,
    compare_by_bootstrap,
)
from lora_chat.evaluation.loss import RowLosses
from lora_chat.evaluation.metrics import reduce_to_mean

MAX_ROWS = 48
"""Number of replies that are measured under their own and under another prompt."""


@dataclass(frozen=True)
class PromptControl:
    """The loss of replies under their own prompts and under those of other dialogues, of the adapted model."""

    replies: int
    own: float
    """Mean loss of a token of a reply under its own prompt, in nats."""
    other: float
    """The same under the prompt of another dialogue."""
    difference_interval: Interval
    """95 % interval of `other` minus `own`."""
    p_value: float

    @property
    def depends_on_prompt(self) -> bool:
        """Return whether replies are shown to be likelier under their own prompts."""
        return self.other > self.own and self.p_value < SIGNIFICANCE

    def as_dict(self) -> dict[str, object]:
        """Return the control for JSON."""
        return {**asdict(self), "depends_on_prompt": self.depends_on_prompt}


def exchange_prompts(
    rows: Sequence[EncodedDialogue], prompts: Sequence[Sequence[int]] = ()
) -> tuple[list[EncodedDialogue], list[EncodedDialogue]]:
    """Return rows with only their last reply supervised, and the same replies under prompts of other rows.

    Each reply gets the prompt of the next row that has another prompt and another reply. Rows without a prompt are left
    out, such as plain text. Rows whose prompts are supervised, too, are divided after one of `prompts`.
    """
    known = {tuple(prompt) for prompt in prompts}
    parts = [part for row in rows if (part := _split_last_reply(row, known)) is not None][:MAX_ROWS]
    own, others = [], []
    for index, (prompt, reply) in enumerate(parts):
        candidates = (parts[(index + step) % len(parts)] for step in range(1, len(parts)))
        other = next((p for p, r in candidates if p != prompt and r != reply), None)
        if other is not None:
            own.append(_join(prompt, reply))
            others.append(_join(other, reply))
    return own, others


def _split_last_reply(
    row: EncodedDialogue, known: Collection[tuple[int, ...]] = ()
) -> tuple[list[int], list[int]] | None:
    """Return the ids before the last supervised tokens, and the ids of these; None without a prompt.

    Supervised tokens of a known prompt belong to the prompt.
    """
    spans = row.supervised_spans
    begin, end = spans[-1] if spans else (0, 0)
    for length in sorted({len(prompt) for prompt in known if begin < len(prompt) < end}, reverse=True):
        if tuple(row.input_ids[:length]) in known:
            begin = length
            break
    return (row.input_ids[:begin], row.input_ids[begin:end]) if 0 < begin < end else None


def _join(prompt: list[int], reply: list[int]) -> EncodedDialogue:
    """Return a row of a prompt and a supervised reply."""
    return EncodedDialogue([*prompt, *reply], [IGNORE_INDEX] * len(prompt) + reply)


def compare_prompts(own: RowLosses, others: RowLosses) -> PromptControl | None:
    """Compare the losses of the same replies under both kinds of prompts; None for too few replies."""
    if len(own.losses) < MIN_ITEMS:
        return None
    first, second = (np.array([losses.losses, losses.tokens], np.float64).T for losses in (own, others))
    paired = compare_by_bootstrap(first, second, reduce_to_mean)
    return PromptControl(len(own.losses), paired.base, paired.adapted, paired.difference_interval, paired.p_value)
