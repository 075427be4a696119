"""The figures of the comparison with an endpoint, their limits, and the verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_chat.export.parity.compare import MAX_CONTROL_FRACTION
from lora_chat.export.parity.tolerances import Tolerances
from lora_chat.pipeline.endpoint.judge_reply import JudgedReply

IS_ADAPTER, IS_BASE, IS_OTHER, IS_UNCLEAR = "the adapter", "the base", "another model", "not decided"
"""Words of the verdict."""
_NO_EFFECT_KL = 1e-3
"""Largest KL of the base, in nats per token, at which rounding may be as large as the adapter."""
_MIN_REGRET = 0.02
"""Smallest limit of the regret, in nats per token: two nearly equal tokens may swap by rounding."""


@dataclass(frozen=True)
class PromptParity:
    """Whether the endpoint encodes prompts as training does."""

    prompts: int
    compared_ids: int
    """Number of prompts whose ids the endpoint reported."""
    other_ids: int
    compared_lengths: int
    """Number of prompts whose length the endpoint reported."""
    other_lengths: int


@dataclass(frozen=True)
class EndpointComparison:
    """The differences of an endpoint from the adapted model."""

    prompts: PromptParity
    replies: int
    equal_replies: float
    equal_to_base: float
    """Share of replies that are equal to the base's."""
    agreement: float
    """Mean share of the adapted model's reply with which the endpoint's begins."""
    base_agreement: float
    """Mean share of the base's reply with which the endpoint's begins."""
    first_differences: tuple[int, ...]
    """Numbers of the first other token in the replies that differ."""
    tokens: int
    """Number of tokens up to the first differences."""
    same_top_token: float
    regret: float
    """Mean log-probability that its tokens lack against the most probable ones, in nats per token."""
    control_regret: float
    """The same of the base's replies here."""
    ended_replies: int
    """Number of replies that the adapted model ends within the limit, so that the stop token is checked."""
    passed_stops: int
    early_ends: int
    cut_replies: int
    """Number of replies that were cut off before half of the adapted model's."""
    kl_tokens: int
    """Number of tokens whose probabilities were compared; 0 if the endpoint does not report them."""
    mean_kl: float | None
    """Lower bound of the mean KL(adapted || endpoint), in nats per token."""
    control_kl: float | None
    """Mean KL(adapted || base) in the same classes."""
    base_kl: float | None
    """Lower bound of the mean KL(base || endpoint)."""
    tolerances: Tolerances

    @property
    def is_decisive(self) -> bool:
        """Return whether the figures differ for the adapted model and its base."""
        return (self.control_kl or 0.0) >= _NO_EFFECT_KL or self.control_regret >= _MIN_REGRET

    @property
    def failures(self) -> tuple[str, ...]:
        """Return descriptions of the figures outside of their limits."""
        limit = max(_MIN_REGRET, 2 * self.tolerances.mean_kl)
        checks = [
            (self.prompts.other_ids, f"{self.prompts.other_ids} of {self.prompts.compared_ids} prompts have other ids"),
            (
                self.prompts.other_lengths,
                f"{self.prompts.other_lengths} of {self.prompts.compared_lengths} prompts have another length",
            ),
            (self.passed_stops, f"{self.passed_stops} replies continue after the stop token of training"),
            (self.early_ends, f"{self.early_ends} replies end where the adapter does not"),
            (self.cut_replies, f"{self.cut_replies} replies are cut off before half of the adapter's"),
            (
                self.same_top_token < self.tolerances.same_top_token,
                f"{self.same_top_token:.1%} of its tokens are the most probable ones of the adapter, "
                f"allowed {self.tolerances.same_top_token:.0%}",
            ),
            (
                self.equal_replies < self.tolerances.equal_replies,
                f"{self.equal_replies:.0%} of {self.replies} replies are equal, "
                f"allowed {self.tolerances.equal_replies:.0%}",
            ),
            (
                not self.regret <= limit,
                f"its tokens are less probable by {self.regret:.2g} nats than the adapter's, allowed {limit:.2g}",
            ),
            (
                self.control_regret >= _MIN_REGRET and not self.regret < MAX_CONTROL_FRACTION * self.control_regret,
                f"the replies of the base are as near ({self.control_regret:.2g} nats)",
            ),
        ]
        if self.mean_kl is not None and self.control_kl is not None:
            checks += [
                (
                    not self.mean_kl <= self.tolerances.mean_kl,
                    f"KL {self.mean_kl:.2g} nats per token, allowed {self.tolerances.mean_kl:.2g}",
                ),
                (
                    self.control_kl >= _NO_EFFECT_KL and not self.mean_kl < MAX_CONTROL_FRACTION * self.control_kl,
                    f"KL {self.mean_kl:.2g} nats per token, and the base is as near ({self.control_kl:.2g})",
                ),
            ]
        return tuple(text for is_wrong, text in checks if is_wrong)

    @property
    def verdict(self) -> str:
        """Return one of the four verdicts."""
        if not self.failures:
            return IS_ADAPTER if self.is_decisive else IS_UNCLEAR
        if self.mean_kl is not None and self.base_kl is not None:
            return IS_BASE if self.base_kl < self.mean_kl and self.base_kl <= self.tolerances.mean_kl else IS_OTHER
        return IS_BASE if self.base_agreement > max(0.5, self.agreement) else IS_OTHER


def compare_endpoint(
    prompts: PromptParity,
    judged: Sequence[JudgedReply],
    controls: Sequence[JudgedReply],
    ended_replies: int,
    tolerances: Tolerances,
) -> EndpointComparison:
    """Return the figures of judged replies; `controls` are the base's replies, judged in the same way."""
    kl, control_kl, base_kl = (
        [value for reply in judged for value in getattr(reply, name)] for name in ("kl", "control_kl", "base_kl")
    )
    tokens = sum(reply.tokens for reply in judged)
    differences = tuple(reply.first_difference for reply in judged if reply.first_difference is not None)
    return EndpointComparison(
        prompts=prompts,
        replies=len(judged),
        equal_replies=_mean([reply.is_equal for reply in judged]) or 0.0,
        equal_to_base=_mean([reply.is_equal_to_base for reply in judged]) or 0.0,
        agreement=_mean([reply.agreement for reply in judged]) or 0.0,
        base_agreement=_mean([reply.base_agreement for reply in judged]) or 0.0,
        first_differences=differences,
        tokens=tokens,
        same_top_token=1 - len(differences) / max(1, tokens),
        regret=sum(reply.regret for reply in judged) / max(1, tokens),
        control_regret=sum(reply.regret for reply in controls) / max(1, sum(reply.tokens for reply in controls)),
        ended_replies=ended_replies,
        passed_stops=sum(reply.passes_stop for reply in judged),
        early_ends=sum(reply.ends_early for reply in judged),
        cut_replies=sum(reply.is_cut for reply in judged),
        kl_tokens=len(kl),
        mean_kl=_mean(kl),
        control_kl=_mean(control_kl),
        base_kl=_mean(base_kl),
        tolerances=tolerances,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
