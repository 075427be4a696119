"""Held-out dialogues on which a delivered model is asked what the adapted model was asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_chat.config.limits import PROVEN_DIALOGUES
from lora_chat.data.dataset import DialogueSet
from lora_chat.data.encoding.encode import IGNORE_INDEX

_LONGEST, _MOST_PLACES = 2048, 256
"""Tokens and supervised tokens of a dialogue; what is behind is not compared, for the memory that logits take."""


@dataclass(frozen=True)
class Probe:
    """One held-out dialogue, or block of plain text."""

    ids: tuple[int, ...]
    places: tuple[int, ...]
    """Where the next token carries loss."""
    messages: tuple[dict[str, Any], ...] = ()
    """What stands before the first reply; nothing for plain text."""
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def prompt(self) -> tuple[int, ...]:
        """The ids in front of the first reply."""
        return self.ids[: self.places[0] + 1] if self.messages else self.ids[: len(self.ids) // 2 or 1]

    @property
    def answers(self) -> tuple[int, ...]:
        """The tokens that follow `places`."""
        return tuple(self.ids[place + 1] for place in self.places)


def make_probes(validation: DialogueSet, most: int = PROVEN_DIALOGUES) -> list[Probe]:
    """The first `most` held-out dialogues, spread over all of them."""
    probes: list[Probe] = []
    stride = max(1, len(validation) // most)
    for number, (_, _, dialogue, rows) in enumerate(validation.units()):
        if number % stride == 0 and len(probes) < most and rows:
            said: Sequence[dict[str, Any]] = ()
            if dialogue is not None:
                place = next(i for i, message in enumerate(dialogue.messages) if message.role == "assistant")
                said = dialogue.as_dicts[:place]
            probe = make_probe(rows[0].input_ids, rows[0].labels, said, (dialogue and dialogue.tool_list) or ())
            probes += [probe] if probe.places else []
    for row in validation.rows[len(validation.rows) - validation.blocks :]:
        if len(probes) < most:
            probes.append(make_probe(row.input_ids, row.labels))
    return probes


def make_probe(
    ids: Sequence[int],
    labels: Sequence[int],
    messages: Sequence[dict[str, Any]] = (),
    tools: Sequence[dict[str, Any]] = (),
) -> Probe:
    """A probe of one encoded dialogue."""
    ids = ids[:_LONGEST]
    places = tuple(i - 1 for i in range(1, len(ids)) if labels[i] != IGNORE_INDEX)
    return Probe(tuple(ids), places[:_MOST_PLACES], tuple(messages), tuple(tools))
