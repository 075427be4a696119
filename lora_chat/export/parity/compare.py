"""A delivered model against the adapted one it was made from: how far they are apart, and what that may be."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_chat.errors import IntegrityError
from lora_chat.export.parity.samples import ParitySample
from lora_chat.export.parity.tolerances import Tolerances

if TYPE_CHECKING:
    import torch

    from lora_chat.export.parity.outputs import ParityOutputs

MAX_CONTROL_FRACTION = 0.5
"""Of the distance of the base alone: what is not clearly nearer to the adapted model proves nothing."""


@dataclass(frozen=True)
class ParityReport:
    """How far two models are apart on the same held-out tokens."""

    what: str
    """The delivered thing: its format."""
    reader: str
    """The program that opened it, with its version."""
    dialogues: int
    tokens: int
    """Supervised tokens whose distributions were compared."""
    mean_kl: float
    """Mean KL(adapted || delivered) per token, in nats."""
    largest_kl: float
    largest_logit_difference: float
    same_top_token: float
    """Share of tokens with the same most likely one."""
    control_kl: float
    """The same mean KL for the base without the adapter: the negative control."""
    loss_adapted: float
    """Nats per supervised token."""
    loss_delivered: float
    replies: int
    reply_tokens: int
    """Greedy tokens of each reply that were compared."""
    equal_replies: float
    """Share of greedy replies that are equal, token by token."""
    failures: tuple[str, ...] = ()
    """What is beyond its limit, in words."""
    accepted: bool = False
    """Whether it was kept in spite of that."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare_outputs(
    what: str,
    reader: str,
    expected: "ParityOutputs",
    delivered: "ParityOutputs",
    samples: Sequence[ParitySample],
    tolerances: Tolerances,
) -> ParityReport:
    """Compare what two models answered to the same probes; `failures` says what is beyond its limit."""
    distance = measure_distance(expected.logits, delivered.logits)
    equal = [a == b for a, b in zip(expected.replies, delivered.replies, strict=True)]
    report = ParityReport(
        what=what,
        reader=reader,
        dialogues=len(samples),
        **distance,
        control_kl=expected.control_kl,
        loss_adapted=expected.loss,
        loss_delivered=delivered.loss,
        replies=len(equal),
        reply_tokens=max(map(len, expected.replies), default=0),
        equal_replies=sum(equal) / len(equal) if equal else 1.0,
    )
    return replace(report, failures=tuple(_list_failures(report, delivered.mismatches, tolerances)))


def check_parity(report: ParityReport, *, accept: bool) -> ParityReport:
    """Raise IntegrityError if anything is beyond its limit, unless that is accepted."""
    if not report.failures:
        return report
    if accept:
        return replace(report, accepted=True)
    raise IntegrityError(
        f"The {report.what} is not what the adapted model is, as {report.reader} reads it:\n"
        + "".join(f"  {failure}\n" for failure in report.failures)
        + "It was not kept. --accept keeps it all the same."
    )


def _list_failures(report: ParityReport, mismatches: Sequence[str], tolerances: Tolerances) -> list[str]:
    found = list(mismatches)
    share = MAX_CONTROL_FRACTION * report.control_kl
    # Written so that NaN fails.
    if not report.mean_kl <= tolerances.mean_kl:
        found.append(f"mean KL {report.mean_kl:.2g} nats per token, allowed {tolerances.mean_kl:.2g}")
    elif not report.mean_kl < share:
        found.append(
            f"mean KL {report.mean_kl:.2g} nats per token, and the base without the adapter is as near "
            f"({report.control_kl:.2g}): the adapter says hardly more than this format rounds away"
        )
    if not report.same_top_token >= tolerances.same_top_token:
        found.append(f"same most likely token at {report.same_top_token:.1%}, allowed {tolerances.same_top_token:.1%}")
    if not report.equal_replies >= tolerances.equal_replies:
        least = f"{tolerances.equal_replies:.0%}"
        found.append(f"{report.equal_replies:.0%} of {report.replies} replies equal, allowed {least}")
    if not report.loss_delivered - report.loss_adapted <= tolerances.loss_rise:
        found.append(
            f"validation loss {report.loss_delivered:.3f} for {report.loss_adapted:.3f}, "
            f"allowed {tolerances.loss_rise:.2g} more"
        )
    return found


def measure_distance(expected: "Sequence[torch.Tensor]", delivered: "Sequence[torch.Tensor]") -> dict[str, Any]:
    """KL, logits and most likely tokens of two models at the same places, each (places, vocabulary)."""
    import torch

    kls, largest, same = [], 0.0, []
    for left, right in zip(expected, delivered, strict=True):
        p, q = left.float().log_softmax(-1), right.float().log_softmax(-1)
        kls.append((p.exp() * (p - q)).sum(-1).clamp(min=0))  # rounding can give less
        # A constant on all logits of a place changes nothing: runtimes may shift them.
        shift = (left - right) - (left - right).mean(-1, keepdim=True)
        largest = max(largest, float(shift.abs().max()))
        same.append(left.argmax(-1) == right.argmax(-1))
    kl = torch.cat(kls)
    return {
        "tokens": kl.numel(),
        "mean_kl": float(kl.mean()),
        "largest_kl": float(kl.max()),
        "largest_logit_difference": largest,
        "same_top_token": float(torch.cat(same).float().mean()),
    }
