"""Measure a reference at the end of training, and the distance of a loaded model from it.

The record has only the most probable tokens of each position, so all others are one class. By the data processing
inequality the KL divergence of such classes is never above the true one: a distance beyond a limit is certain, and a
small one is only as good as the control, the distance of the bare base.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.config.plan import PrecisionPlan
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.errors import DataError, IntegrityError
from lora_chat.export.parity.compare import MAX_CONTROL_FRACTION
from lora_chat.export.parity.reference import (
    REFERENCE_QUESTIONS,
    REFERENCE_REPLY_TOKENS,
    REFERENCE_TOP_TOKENS,
    ModelReference,
    ReferenceReply,
    TopTokens,
    digest_prompt,
    format_top,
    make_reference_chat,
)
from lora_chat.export.parity.tolerances import REFERENCE_LIMITS
from lora_chat.export.parity.transformers_runner import TransformersRunner
from lora_chat.inference.generation import generate_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Scorer = Callable[[Sequence[int], Sequence[int]], "torch.Tensor"]
"""Function from ids and positions to the logits (positions, vocabulary) of the token after each position."""
_ROUNDING_KL = {"float32": 1e-6, "bfloat16": 3e-3, "float16": 3e-3}
"""Mean KL that only another order of additions can give, in nats per token, by the dtype of the products.

The embedded base in bf16 on a CPU had 1.0e-3 between one forward pass and token by token with a cache.
"""


@dataclass(frozen=True)
class ReferenceDistance:
    """Distance of a model from a reference, in nats per token."""

    positions: int
    mean_kl: float
    """Lower bound of the mean KL(reference || model)."""
    largest_kl: float
    same_top_token: float
    """Share of positions with the same most probable token."""


@dataclass(frozen=True)
class ReferenceComparison:
    """The distance of a loaded adapter from its reference, beside the distance of the bare base."""

    distance: ReferenceDistance
    control_kl: float
    """Mean KL(reference || bare base) in the same classes."""
    limit: float
    dtype: str
    is_other_mode: bool = False
    """Whether the base is quantized in another way than in training, so that a large distance proves nothing."""

    @property
    def passed(self) -> bool | None:
        """Return whether this is the trained model; None if the adapter changes less than rounding."""
        passed = judge_distance(self.distance.mean_kl, self.control_kl, self.limit, self.dtype)
        if passed is False and self.is_other_mode and math.isfinite(self.distance.mean_kl):
            return None
        return passed

    def describe(self) -> str:
        """Return the figures as a sentence."""
        text = (
            f"KL to the reference {self.distance.mean_kl:.1e} nats per token on {self.distance.positions} tokens, "
            f"allowed {self.limit:.0e} (the bare base {self.control_kl:.1e})"
        )
        if self.passed is None and self.is_other_mode:
            text += "; the quantization is another one than in training"
        elif self.passed is None:
            text += "; the adapter changes so little that rounding is as large"
        elif not self.passed and self.distance.mean_kl <= self.limit:
            text += "; the bare base is as near"
        return text


def judge_distance(kl: float, control_kl: float, limit: float, dtype: str) -> bool | None:
    """Return whether a distance fits the trained model, or None if the adapter changes less than rounding."""
    if not kl <= limit:  # NaN fails
        return False
    if kl < MAX_CONTROL_FRACTION * control_kl:
        return True
    return None if kl <= _ROUNDING_KL[dtype] else False


def make_reference(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Collection[int],
    system: str | None,
    precision: PrecisionPlan,
    may_share: Callable[[str], bool] = lambda reply: True,
) -> ModelReference | None:
    """Return the reference of an adapted model; None if its template refuses the questions.

    A reply whose text `may_share` rejects is left out.
    """
    prompts: dict[int, list[int]] = {}
    for question in range(len(REFERENCE_QUESTIONS)):
        try:
            chat = make_reference_chat(question, system)
            prompts[question] = render_ids(tokenizer, chat, add_generation_prompt=True)
        except DataError as error:
            logger.info(f"The reference has no reply to question {question}: {error}")
    if not prompts:
        return None
    pad = int(tokenizer.pad_token_id)
    replies = generate_ids(model, pad, list(prompts.values()), stop_ids, REFERENCE_REPLY_TOKENS)
    scorer = TransformersRunner(model, tokenizer).logits
    stop = min(stop_ids)
    entries = []
    for (question, prompt), reply in zip(prompts.items(), replies, strict=True):
        ids = [*reply, *([stop] if len(reply) < REFERENCE_REPLY_TOKENS else [])]
        if not may_share(str(tokenizer.decode(reply))):
            continue
        shared, top = _read_top(scorer, prompt, ids)
        if shared:
            texts = tuple(map(format_top, top))
            entries.append(ReferenceReply(question=question, prompt=digest_prompt(prompt), reply=shared, top=texts))
    if not entries:
        return None
    return ModelReference(mode=precision.mode, dtype=precision.dtype, device=precision.device, replies=tuple(entries))


def _read_top(scorer: Scorer, prompt: Sequence[int], reply: Sequence[int]) -> tuple[tuple[int, ...], list[TopTokens]]:
    """Return the part of a reply before a token that is not among the most probable, and the distributions in it."""
    logits = _score_reply(scorer, prompt, reply)
    shared: list[int] = []
    distributions: list[TopTokens] = []
    for token, row in zip(reply, logits.double().log_softmax(-1), strict=True):
        values, ids = row.topk(min(REFERENCE_TOP_TOKENS, len(row)))
        top = tuple(zip(map(int, ids.tolist()), values.tolist(), strict=True))
        if token not in ids.tolist() or not all(math.isfinite(value) for _, value in top):
            break
        shared.append(token)
        distributions.append(top)
    return tuple(shared), distributions


def _score_reply(scorer: Scorer, prompt: Sequence[int], reply: Sequence[int]) -> "torch.Tensor":
    """Return the logits before each token of a reply, (tokens, vocabulary)."""
    return scorer([*prompt, *reply], range(len(prompt) - 1, len(prompt) + len(reply) - 1))


def measure_reference(
    reference: ModelReference, prompts: Mapping[int, Sequence[int]], scorer: Scorer
) -> ReferenceDistance:
    """Score the tokens of a reference after prompts, by the number of their question, and return the distance.

    Raises IntegrityError for a token that the model does not have.
    """
    kls: list[float] = []
    same = 0
    for entry in reference.replies:
        logits = _score_reply(scorer, prompts[entry.question], entry.reply)
        if entry.largest_id >= logits.shape[-1]:
            raise IntegrityError(f"the reference names the token {entry.largest_id}, which the base does not have")
        for top, row in zip(entry.distributions, logits, strict=True):
            kls.append(truncated_kl(top, row))
            same += int(row.argmax()) == top[0][0]
    mean = sum(kls) / len(kls)
    return ReferenceDistance(len(kls), mean, math.nan if math.isnan(mean) else max(kls), same / len(kls))


def truncated_kl(top: TopTokens, logits: "torch.Tensor") -> float:
    """Return KL(P || Q) of the stored tokens, with all others as one class, in nats; `logits` (vocabulary,) give Q.

    It is a lower bound of the true KL divergence (data processing inequality).
    """
    import torch

    q = logits.double().log_softmax(-1)
    ids = torch.tensor([token for token, _ in top], device=q.device)
    p = torch.tensor([logprob for _, logprob in top], dtype=torch.float64, device=q.device)
    kl = float((p.exp() * (p - q[ids])).sum())
    rest = max(0.0, 1.0 - float(p.exp().sum()))
    if rest > 0 and len(top) < len(q):
        others = q.index_fill(0, ids, -math.inf)
        kl += rest * (math.log(rest) - float(others.logsumexp(0)))
    return kl if math.isnan(kl) else max(0.0, kl)


def find_reference_limit(reference: ModelReference, precision: PrecisionPlan) -> float:
    """Return the largest mean KL to a reference that is measured again in a precision."""
    if reference.mode != precision.mode:
        return REFERENCE_LIMITS["other mode"]
    is_same = (reference.dtype, reference.device) == (precision.dtype, precision.device)
    return REFERENCE_LIMITS["same precision" if is_same else "other precision"]


def compare_with_reference(
    reference: ModelReference,
    prompts: Mapping[int, Sequence[int]],
    precision: PrecisionPlan,
    adapted: Scorer,
    base: Scorer,
) -> ReferenceComparison:
    """Return the distance of a loaded adapter from its reference, and of the bare base. Raises IntegrityError."""
    distance = measure_reference(reference, prompts, adapted)
    control = measure_reference(reference, prompts, base)
    limit = find_reference_limit(reference, precision)
    is_other_mode = reference.mode != precision.mode
    return ReferenceComparison(distance, control.mean_kl, limit, precision.dtype, is_other_mode)
