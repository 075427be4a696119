"""Held-out dialogues on which a delivered model is asked what the adapted model was asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_chat.config.limits import PARITY_MAX_DIALOGUES
from lora_chat.data.dataset import DialogueSet
from lora_chat.data.encoding.encode import IGNORE_INDEX

_MAX_TOKENS, _MAX_POSITIONS = 2048, 256
"""Tokens and supervised tokens of a dialogue; what is behind is not compared, for the memory that logits take."""


@dataclass(frozen=True)
class ParitySample:
    """One held-out dialogue, or block of plain text."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Where the next token carries loss."""
    messages: tuple[dict[str, Any], ...] = ()
    """What stands before the first reply; nothing for plain text."""
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def prompt(self) -> tuple[int, ...]:
        """The ids in front of the first reply."""
        return self.ids[: self.positions[0] + 1] if self.messages else self.ids[: len(self.ids) // 2 or 1]

    @property
    def target_ids(self) -> tuple[int, ...]:
        """The tokens that follow `positions`."""
        return tuple(self.ids[place + 1] for place in self.positions)


def select_parity_samples(validation: DialogueSet, max_samples: int = PARITY_MAX_DIALOGUES) -> list[ParitySample]:
    """The first `max_samples` held-out dialogues, spread over all of them."""
    samples: list[ParitySample] = []
    stride = max(1, len(validation) // max_samples)
    for number, (_, _, dialogue, rows) in enumerate(validation.iter_units()):
        if number % stride == 0 and len(samples) < max_samples and rows:
            messages: Sequence[dict[str, Any]] = ()
            if dialogue is not None:
                place = next(i for i, message in enumerate(dialogue.messages) if message.role == "assistant")
                messages = dialogue.as_dicts[:place]
            sample = make_parity_sample(
                rows[0].input_ids, rows[0].labels, messages, (dialogue and dialogue.tool_list) or ()
            )
            samples += [sample] if sample.positions else []
    for row in validation.rows[len(validation.rows) - validation.block_count :]:
        if len(samples) < max_samples:
            samples.append(make_parity_sample(row.input_ids, row.labels))
    return samples


def make_parity_sample(
    ids: Sequence[int],
    labels: Sequence[int],
    messages: Sequence[dict[str, Any]] = (),
    tools: Sequence[dict[str, Any]] = (),
) -> ParitySample:
    """A probe of one encoded dialogue."""
    ids = ids[:_MAX_TOKENS]
    positions = tuple(i - 1 for i in range(1, len(ids)) if labels[i] != IGNORE_INDEX)
    return ParitySample(tuple(ids), positions[:_MAX_POSITIONS], tuple(messages), tuple(tools))
