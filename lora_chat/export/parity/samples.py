"""Select and encode the held-out dialogues that both the adapted and the exported model process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_chat.config.limits import PARITY_MAX_DIALOGUES, PARITY_MAX_POSITIONS, PARITY_MAX_TOKENS
from lora_chat.data.dataset import DialogueSet
from lora_chat.data.encoding.encode import IGNORE_INDEX


@dataclass(frozen=True)
class ParitySample:
    """One held-out dialogue or block of plain text."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Positions whose next token is supervised."""
    messages: tuple[dict[str, Any], ...] = ()
    """Messages before the first reply; empty for plain text."""
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def prompt(self) -> tuple[int, ...]:
        """Return the ids before the first reply, or the first half of plain text."""
        return self.ids[: self.positions[0] + 1] if self.messages else self.ids[: len(self.ids) // 2 or 1]

    @property
    def target_ids(self) -> tuple[int, ...]:
        """Return the tokens after `positions`."""
        return tuple(self.ids[position + 1] for position in self.positions)


def select_parity_samples(validation: DialogueSet, max_samples: int = PARITY_MAX_DIALOGUES) -> list[ParitySample]:
    """Select at most `max_samples` held-out dialogues, evenly spread, and blocks of text if dialogues are missing."""
    samples: list[ParitySample] = []
    stride = max(1, len(validation) // max_samples)
    for number, (_, _, dialogue, rows) in enumerate(validation.iter_units()):
        if number % stride == 0 and len(samples) < max_samples and rows:
            messages: Sequence[dict[str, Any]] = ()
            if dialogue is not None:
                first_reply = next(i for i, m in enumerate(dialogue.messages) if m.role == "assistant" and m.trained)
                messages = dialogue.as_dicts[:first_reply]
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
    """Make a sample of one encoded dialogue."""
    ids = ids[:PARITY_MAX_TOKENS]
    positions = tuple(i - 1 for i in range(1, len(ids)) if labels[i] != IGNORE_INDEX)
    return ParitySample(tuple(ids), positions[:PARITY_MAX_POSITIONS], tuple(messages), tuple(tools))
