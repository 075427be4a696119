"""What a model says to probes: distributions at supervised places, greedy replies, loss."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lora_chat.config.limits import PROVEN_TOKENS
from lora_chat.export.parity.samples import Probe

if TYPE_CHECKING:
    import torch

_MOST_BYTES = 256 * 2**20
"""Logits that are kept, in 32 bits: enough places for a mean, and no matter beside a model's weights."""


class Reader(Protocol):
    """A program that has a model open."""

    @property
    def name(self) -> str:
        """With its version."""

    def logits(self, ids: Sequence[int], places: Sequence[int]) -> "torch.Tensor":
        """(places, vocabulary) logits of the tokens behind some places of a text, on the CPU."""

    def replies(self, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], most: int) -> list[list[int]]:
        """At most so many greedy tokens behind each prompt, stop tokens left out."""

    def misread(self, probes: Sequence[Probe], stop_ids: Collection[int]) -> list[str]:
        """What it makes of texts other than training did, in words: prompts, beginning, stops."""


@dataclass(frozen=True)
class Answers:
    """All that is compared."""

    logits: "tuple[torch.Tensor, ...]"
    """Per probe (places, vocabulary), of its first places."""
    loss: float
    replies: tuple[tuple[int, ...], ...]
    misread: tuple[str, ...]
    control_kl: float = 0.0
    """Of the adapted model: how far the base without its adapter is from it."""


def ask(
    reader: Reader,
    probes: Sequence[Probe],
    stop_ids: Collection[int],
    vocabulary: int,
    step: Callable[[], None] = lambda: None,
) -> Answers:
    """Ask a model everything; `vocabulary` cuts what a format pads."""
    import torch

    each = places_each(len(probes), vocabulary)
    kept, total, count = [], 0.0, 0
    for probe in probes:
        logits = reader.logits(probe.ids, probe.places)[:, :vocabulary].float()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(probe.answers), reduction="none")
        total, count = total + float(losses.double().sum()), count + len(probe.places)
        kept.append(logits[:each].clone())
        step()
    replies = reader.replies([probe.prompt for probe in probes], stop_ids, PROVEN_TOKENS)
    return Answers(
        logits=tuple(kept),
        loss=total / count,
        replies=tuple(map(tuple, replies)),
        misread=tuple(reader.misread(probes, stop_ids)),
    )


def places_each(probes: int, vocabulary: int) -> int:
    """Places of each probe whose logits are kept."""
    return max(1, _MOST_BYTES // (4 * vocabulary * max(1, probes)))
