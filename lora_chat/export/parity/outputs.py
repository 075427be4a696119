"""Collect the outputs of a model for parity samples: logits at supervised positions, loss and greedy replies."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lora_chat.config.limits import PARITY_MAX_NEW_TOKENS
from lora_chat.export.parity.samples import ParitySample

if TYPE_CHECKING:
    import torch

_MAX_LOGITS_BYTES = 256 * 2**20
"""Size of the kept logits, in bytes of float32: enough for a mean, and small beside the weights of a model."""


class ParityRunner(Protocol):
    """A program that has opened a model."""

    @property
    def name(self) -> str:
        """Return the name of the program with its version."""

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> "torch.Tensor":
        """Return (positions, vocabulary) logits for the token after each position, on the CPU."""

    def replies(
        self, prompts: Sequence[Sequence[int]], stop_ids: Collection[int], max_new_tokens: int
    ) -> list[list[int]]:
        """Return a greedy reply to each prompt, of at most `max_new_tokens` and without the stop token."""

    def mismatches(self, samples: Sequence[ParitySample], stop_ids: Collection[int]) -> list[str]:
        """Describe prompts and stop tokens that differ from training."""


@dataclass(frozen=True)
class ParityOutputs:
    """The outputs of one model that are compared."""

    logits: "tuple[torch.Tensor, ...]"
    """(positions, vocabulary) for each sample, of its first positions."""
    loss: float
    """Nats per supervised token."""
    replies: tuple[tuple[int, ...], ...]
    mismatches: tuple[str, ...]
    control_kl: float = 0.0
    """Mean KL between the adapted model and the base without the adapter, in nats; only for the adapted model."""


def collect_outputs(
    runner: ParityRunner,
    samples: Sequence[ParitySample],
    stop_ids: Collection[int],
    vocab_size: int,
    on_sample: Callable[[], None] = lambda: None,
) -> ParityOutputs:
    """Collect all outputs of a model. Logits beyond `vocab_size`, which are padding, are cut off."""
    import torch

    max_positions = positions_per_sample(len(samples), vocab_size)
    kept_logits, total, count = [], 0.0, 0
    for sample in samples:
        logits = runner.logits(sample.ids, sample.positions)[:, :vocab_size].float()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(sample.target_ids), reduction="none")
        total, count = total + float(losses.double().sum()), count + len(sample.positions)
        kept_logits.append(logits[:max_positions].clone())
        on_sample()
    replies = runner.replies([sample.prompt for sample in samples], stop_ids, PARITY_MAX_NEW_TOKENS)
    return ParityOutputs(
        logits=tuple(kept_logits),
        loss=total / count,
        replies=tuple(map(tuple, replies)),
        mismatches=tuple(runner.mismatches(samples, stop_ids)),
    )


def positions_per_sample(num_samples: int, vocab_size: int) -> int:
    """Return the number of positions of each sample whose logits are kept."""
    return max(1, _MAX_LOGITS_BYTES // (4 * vocab_size * max(1, num_samples)))
