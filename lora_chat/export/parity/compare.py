"""Compare an exported model with the adapted model: measure their differences and check them against tolerances."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ConfigDict

from lora_chat.config.base import StrictModel
from lora_chat.errors import IntegrityError
from lora_chat.export.formats import TOLERANCES
from lora_chat.export.parity.outputs import ParityOutputs, ParityRunner, collect_outputs
from lora_chat.export.parity.samples import ParitySample
from lora_chat.export.parity.tolerances import Tolerances

if TYPE_CHECKING:
    import torch

MAX_CONTROL_FRACTION = 0.5
"""Largest mean KL, as a share of the mean KL of the base; beyond it, the exported model may lack the adapter."""


class ParityReport(StrictModel):
    """Differences of two models on the same held-out tokens. A receipt embeds it with bounds (`ParityReceipt`)."""

    model_config = ConfigDict(allow_inf_nan=True)  # a broken export can give NaN, which must be reported

    what: str
    """Name of the exported thing, a key of `TOLERANCES`."""
    reader: str
    """Program that opened it, with its version."""
    dialogues: int
    """Number of dialogues."""
    tokens: int
    """Number of supervised tokens whose distributions were compared."""
    mean_kl: float
    """Mean KL(adapted || exported), in nats per token."""
    largest_kl: float
    """Largest KL of one token, in nats."""
    largest_logit_difference: float
    """Largest difference of two logits, after the mean difference of each position is subtracted."""
    same_top_token: float
    """Share of tokens with the same most likely token."""
    control_kl: float
    """Mean KL between the adapted model and the base without the adapter (negative control), in nats per token."""
    loss_adapted: float
    """Loss of the adapted model, in nats per supervised token."""
    loss_delivered: float
    """Loss of the exported model, in nats per supervised token."""
    replies: int
    """Number of greedy replies."""
    reply_tokens: int
    """Number of tokens of the longest reply."""
    equal_replies: float
    """Share of greedy replies that are equal token by token."""
    failures: tuple[str, ...] = ()
    """Descriptions of the figures outside of their tolerance, and of other mismatches."""
    accepted: bool = False
    """Whether the files were kept on request although the check failed."""


@dataclass(frozen=True)
class LogitDistance:
    """Differences of two sets of logits, with the meanings of `ParityReport`."""

    tokens: int
    mean_kl: float
    largest_kl: float
    largest_logit_difference: float
    same_top_token: float


def measure_parity(
    report_name: str,
    runner: ParityRunner,
    expected: ParityOutputs,
    samples: Sequence[ParitySample],
    stop_ids: Collection[int],
) -> ParityReport:
    """Run the samples through an exported model and compare its outputs with the expected ones."""
    vocab_size = expected.logits[0].shape[-1]
    exported = collect_outputs(runner, samples, stop_ids, vocab_size)
    return compare_outputs(report_name, runner.name, expected, exported, samples, TOLERANCES[report_name])


def compare_outputs(
    report_name: str,
    runner_name: str,
    expected: ParityOutputs,
    exported: ParityOutputs,
    samples: Sequence[ParitySample],
    tolerances: Tolerances,
) -> ParityReport:
    """Compare the outputs of two models for the same samples; `failures` lists what exceeds the tolerances."""
    distance = measure_distance(expected.logits, exported.logits)
    equal = [a == b for a, b in zip(expected.replies, exported.replies, strict=True)]
    report = ParityReport(
        what=report_name,
        reader=runner_name,
        dialogues=len(samples),
        tokens=distance.tokens,
        mean_kl=distance.mean_kl,
        largest_kl=distance.largest_kl,
        largest_logit_difference=distance.largest_logit_difference,
        same_top_token=distance.same_top_token,
        control_kl=expected.control_kl,
        loss_adapted=expected.loss,
        loss_delivered=exported.loss,
        replies=len(equal),
        reply_tokens=max(map(len, expected.replies), default=0),
        equal_replies=sum(equal) / len(equal) if equal else 1.0,
    )
    return report.model_copy(update={"failures": tuple(_list_failures(report, exported.mismatches, tolerances))})


def check_parity(report: ParityReport, *, accept: bool) -> ParityReport:
    """Return the report if nothing failed or if failures are accepted, otherwise raise IntegrityError."""
    if not report.failures:
        return report
    if accept:
        return report.model_copy(update={"accepted": True})
    raise IntegrityError(
        f"Parity check failed: the {report.what} differs from the adapted model (opened with {report.reader}):\n"
        + "".join(f"  {failure}\n" for failure in report.failures)
        + "It was not kept. Fix: choose another format or GGUF type, or keep it with --accept."
    )


def _list_failures(report: ParityReport, mismatches: Sequence[str], tolerances: Tolerances) -> list[str]:
    """List the mismatches and the figures outside of their tolerance."""
    failures = list(mismatches)
    max_mean_kl = MAX_CONTROL_FRACTION * report.control_kl
    # `not a <= b` instead of `a > b`, so that NaN fails.
    if not report.mean_kl <= tolerances.mean_kl:
        failures.append(f"mean KL {report.mean_kl:.2g} nats per token, allowed {tolerances.mean_kl:.2g}")
    elif not report.mean_kl < max_mean_kl:
        failures.append(
            f"mean KL {report.mean_kl:.2g} nats per token, and the base without the adapter is as near "
            f"({report.control_kl:.2g}): the adapter changes hardly more than the rounding of this format"
        )
    if not report.same_top_token >= tolerances.same_top_token:
        failures.append(
            f"same most likely token at {report.same_top_token:.1%}, allowed {tolerances.same_top_token:.1%}"
        )
    if not report.equal_replies >= tolerances.equal_replies:
        min_share = f"{tolerances.equal_replies:.0%}"
        failures.append(f"{report.equal_replies:.0%} of {report.replies} replies equal, allowed {min_share}")
    if not report.loss_delivered - report.loss_adapted <= tolerances.loss_rise:
        failures.append(
            f"validation loss {report.loss_delivered:.3f} instead of {report.loss_adapted:.3f}, "
            f"allowed {tolerances.loss_rise:.2g} more"
        )
    return failures


def measure_distance(expected: "Sequence[torch.Tensor]", exported: "Sequence[torch.Tensor]") -> LogitDistance:
    """Measure KL, logit differences and equal most likely tokens; each tensor is (positions, vocabulary)."""
    import torch

    kls, largest_difference, same_top = [], 0.0, []
    for expected_logits, exported_logits in zip(expected, exported, strict=True):
        p, q = expected_logits.float().log_softmax(-1), exported_logits.float().log_softmax(-1)
        kls.append((p.exp() * (p - q)).sum(-1).clamp(min=0))  # rounding can give a negative sum
        # A constant added to all logits of a position changes no probability, and some runtimes add one.
        difference = expected_logits - exported_logits
        difference = difference - difference.mean(-1, keepdim=True)
        largest_difference = max(largest_difference, float(difference.abs().max()))
        same_top.append(expected_logits.argmax(-1) == exported_logits.argmax(-1))
    kl = torch.cat(kls)
    return LogitDistance(
        tokens=kl.numel(),
        mean_kl=float(kl.mean()),
        largest_kl=float(kl.max()),
        largest_logit_difference=largest_difference,
        same_top_token=float(torch.cat(same_top).float().mean()),
    )
