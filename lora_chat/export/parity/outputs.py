"""What a model says to probes: distributions at supervised places, greedy replies, loss."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lora_chat.config.limits import PARITY_MAX_NEW_TOKENS
from lora_chat.export.parity.samples import ParitySample

if TYPE_CHECKING:
    import torch

_MAX_LOGITS_BYTES = 256 * 2**20
"""Logits that are kept, in 32 bits: enough places for a mean, and no matter beside a model's weights."""


class ParityRunner(Protocol):
    """A program that has a model open."""

    @property
    def name(self) -> str:
        """With its version."""

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> "torch.Tensor":
        """(places, vocabulary) logits of the tokens behind some places of a text, on the CPU."""

    def replies(
        self, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], max_new_tokens: int
    ) -> list[list[int]]:
        """At most so many greedy tokens behind each prompt, stop tokens left out."""

    def mismatches(self, samples: Sequence[ParitySample], stop_ids: Collection[int]) -> list[str]:
        """What it makes of texts other than training did, in words: prompts, beginning, stops."""


@dataclass(frozen=True)
class ParityOutputs:
    """All that is compared."""

    logits: "tuple[torch.Tensor, ...]"
    """Per probe (places, vocabulary), of its first places."""
    loss: float
    replies: tuple[tuple[int, ...], ...]
    mismatches: tuple[str, ...]
    control_kl: float = 0.0
    """Of the adapted model: how far the base without its adapter is from it."""


def collect_outputs(
    reader: ParityRunner,
    samples: Sequence[ParitySample],
    stop_ids: Collection[int],
    vocabulary: int,
    on_sample: Callable[[], None] = lambda: None,
) -> ParityOutputs:
    """Ask a model everything; `vocabulary` cuts what a format pads."""
    import torch

    max_positions = positions_per_sample(len(samples), vocabulary)
    kept_logits, total, count = [], 0.0, 0
    for sample in samples:
        logits = reader.logits(sample.ids, sample.positions)[:, :vocabulary].float()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(sample.target_ids), reduction="none")
        total, count = total + float(losses.double().sum()), count + len(sample.positions)
        kept_logits.append(logits[:max_positions].clone())
        on_sample()
    replies = reader.replies([sample.prompt for sample in samples], stop_ids, PARITY_MAX_NEW_TOKENS)
    return ParityOutputs(
        logits=tuple(kept_logits),
        loss=total / count,
        replies=tuple(map(tuple, replies)),
        mismatches=tuple(reader.mismatches(samples, stop_ids)),
    )


def positions_per_sample(num_samples: int, vocabulary: int) -> int:
    """Places of each probe whose logits are kept."""
    return max(1, _MAX_LOGITS_BYTES // (4 * vocabulary * max(1, num_samples)))
