"""A delivered model against the adapted one it was made from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lora_chat.errors import IntegrityError

if TYPE_CHECKING:
    import torch

LARGEST_MEAN_KL = {"none": 1e-2, "4bit": 1e-2, "8bit": 5e-2}
"""Nats per token. Rounding to bf16 alone costs about 3e-3; LLM.int8 also rounds activations, a merge does not."""


@dataclass(frozen=True)
class ProofReport:
    """How far two models are apart on the same tokens."""

    tokens: int
    mean_kl: float
    """Mean KL(adapted || delivered) per token, in nats."""
    largest_kl: float
    largest_logit_difference: float
    same_top_token: float
    """Share of positions with the same most likely token."""

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def collect_logits(model: "torch.nn.Module", probes: Sequence[list[int]]) -> "list[torch.Tensor]":
    """Logits (length, vocabulary) of each probe, in 32 bits on the CPU."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0].float().cpu()
            for ids in probes
        ]


def check_agreement(expected: "Sequence[torch.Tensor]", delivered: "Sequence[torch.Tensor]", mode: str) -> ProofReport:
    """Compare two models' logits on the same probes; raises IntegrityError if they do not agree."""
    report = measure_agreement(expected, delivered)
    if not report.mean_kl <= LARGEST_MEAN_KL[mode]:  # also catches NaN
        raise IntegrityError(
            f"The merged model does not say what the adapted model says: mean KL {report.mean_kl:.2g} nats per "
            f"token, allowed {LARGEST_MEAN_KL[mode]:.2g}; "
            f"same most likely token at {report.same_top_token:.0%} of positions.\n"
            "It was not kept."
        )
    return report


def measure_agreement(expected: "Sequence[torch.Tensor]", delivered: "Sequence[torch.Tensor]") -> ProofReport:
    """Measure the distance of two models' logits on the same probes."""
    import torch

    kls, largest, same = [], 0.0, []
    for left, right in zip(expected, delivered, strict=True):
        p, q = left.log_softmax(-1), right.log_softmax(-1)
        kls.append((p.exp() * (p - q)).sum(-1))
        largest = max(largest, float((left - right).abs().max()))
        same.append(left.argmax(-1) == right.argmax(-1))
    kl = torch.cat(kls)
    return ProofReport(
        tokens=kl.numel(),
        mean_kl=float(kl.mean()),
        largest_kl=float(kl.max()),
        largest_logit_difference=largest,
        same_top_token=float(torch.cat(same).float().mean()),
    )
