"""A reply of an endpoint beside the reply of the adapted model to the same prompt, up to their first difference.

Up to there both models have read the same tokens, so that their probabilities can be compared. An endpoint reports only
the most probable tokens; all others are one class. The KL divergence of such classes is never above the true one.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.pipeline.endpoint.ask_endpoint import EndpointReply, TokenProbabilities
from lora_chat.pipeline.endpoint.local_replies import MAX_REPLY_TOKENS, LocalReply
from lora_chat.pipeline.endpoint.token_forms import TokenForms, drop_think_tags

if TYPE_CHECKING:
    import torch

_SEARCHED_TOKENS = 1_000
"""Number of the most probable tokens here among which the texts of an endpoint's tokens are looked for."""
_MIN_REST = 1e-4
"""Smallest probability of all other tokens that an endpoint can report; some servers normalize the probabilities."""
_MIN_MATCHED = 0.25
"""Smallest share of the probabilities whose texts must be found here."""
_CERTAIN, _UNLIKELY = 0.9, 0.05
"""Probabilities of a stop token above and below which a reply must, or must not, end there."""


@dataclass(frozen=True)
class JudgedReply:
    """The differences of a reply from the adapted model's."""

    is_equal: bool
    is_equal_to_base: bool
    agreement: float
    """Share of the adapted model's reply with which it begins."""
    base_agreement: float
    """Share of the base's reply with which it begins."""
    first_difference: int | None
    """Number of the first other token, counted from 0; None if the replies agree."""
    tokens: int
    """Number of tokens up to the first difference, with the other token."""
    regret: float
    """Log-probability, in nats, that the other token lacks against the most probable one of the adapted model."""
    passes_stop: bool
    """Whether the reply continues where the adapted model certainly ends."""
    ends_early: bool
    """Whether the reply ends where the adapted model certainly does not."""
    is_cut: bool
    """Whether the endpoint cut the reply off before half of the adapted model's, so that it proves little."""
    kl: tuple[float, ...]
    """Lower bounds of KL(adapted || endpoint), in nats, for each token with probabilities."""
    control_kl: tuple[float, ...]
    """KL(adapted || base) in the same classes."""
    base_kl: tuple[float, ...]
    """Lower bounds of KL(base || endpoint)."""


class ReplyJudge:
    """Compares replies to one prompt with the adapted model's."""

    def __init__(self, local: LocalReply, forms: TokenForms, stop_ids: Collection[int]) -> None:
        self._local, self._forms, self._stop_ids = local, forms, list(stop_ids)

    def judge(self, reply: EndpointReply) -> JudgedReply:
        """Compare a reply of an endpoint."""
        text = drop_think_tags(reply.text) if reply.has_thoughts else reply.text
        text = text.strip().rstrip("\ufffd").strip()
        own = self._forms.read_text(self._local.ids, reply.has_thoughts)
        is_equal = text == own and reply.has_ended == self._local.has_ended
        agreed, regret = (len(self._local.ids), 0.0) if is_equal else self._find_difference(text, reply)
        stop = float(self._local.logprobs[agreed, self._stop_ids].exp().sum())
        goes_on = len(text) > len(self._read(agreed, reply.has_thoughts))
        kl, control_kl, base_kl = self._measure_kl(reply.tokens)
        return JudgedReply(
            is_equal=is_equal,
            is_equal_to_base=text == self._forms.read_text(self._local.base_ids, reply.has_thoughts),
            agreement=self._agree(text, self._local.ids, reply.has_thoughts),
            base_agreement=self._agree(text, self._local.base_ids, reply.has_thoughts),
            first_difference=agreed if regret > 0 else None,
            tokens=agreed + (regret > 0 or self._local.has_ended),
            regret=regret,
            passes_stop=regret > 0 and goes_on and stop > _CERTAIN,
            ends_early=regret > 0 and not goes_on and stop < _UNLIKELY,
            is_cut=not goes_on and not reply.has_ended and 2 * agreed < len(self._local.ids),
            kl=kl,
            control_kl=control_kl,
            base_kl=base_kl,
        )

    def judge_base(self) -> JudgedReply:
        """Compare the reply of the base here: the negative control."""
        ids = self._local.base_ids
        return self.judge(EndpointReply(self._forms.read_text(ids), len(ids) < MAX_REPLY_TOKENS))

    def _read(self, count: int, has_thoughts: bool) -> str:
        return self._forms.read_text(self._local.ids[:count], has_thoughts)

    def _count_agreed(self, text: str, ids: Sequence[int], has_thoughts: bool) -> int:
        """Return the number of tokens of a reply here with which a text begins."""
        counts = range(len(ids) + 1)
        return max(n for n in counts if text.startswith(self._forms.read_text(ids[:n], has_thoughts)))

    def _agree(self, text: str, ids: Sequence[int], has_thoughts: bool) -> float:
        return self._count_agreed(text, ids, has_thoughts) / len(ids) if ids else float(not text)

    def _find_difference(self, text: str, reply: EndpointReply) -> tuple[int, float]:
        """Return the number of equal tokens, and the regret of the next one; 0 if the replies agree as far as known."""
        local, has_thoughts = self._local, reply.has_thoughts
        agreed = self._count_agreed(text, local.ids, has_thoughts)
        prefix = self._read(agreed, has_thoughts)
        row = local.logprobs[agreed]
        best = float(row.max())
        if len(text) == len(prefix):
            stop = float(row[self._stop_ids].logsumexp(0))
            return agreed, max(0.0, best - stop) if reply.has_ended else 0.0
        if agreed == len(local.ids) and not local.has_ended:
            return agreed, 0.0
        values, tokens = row.topk(min(_SEARCHED_TOKENS, len(row)))
        for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
            longer = self._forms.read_text([*local.ids[:agreed], token], has_thoughts)
            if len(longer) > len(prefix) and (text.startswith(longer) or longer.startswith(text)):
                return agreed, best - value
        return agreed, best - float(values[-1])

    def _measure_kl(self, tokens: Sequence[TokenProbabilities]) -> tuple[tuple[float, ...], ...]:
        """Return the divergences of JudgedReply, token by token while the endpoint's tokens are the tokens here."""
        local = self._local
        form = self._forms.choose_form(local.ids, [token.text for token in tokens])
        results: list[tuple[float, float, float]] = []
        for number, token in enumerate(tokens[: len(local.ids) + 1]):
            p, b = local.logprobs[number], local.base_logprobs[number]
            classes = _read_classes(token, p, b, form)
            if classes is not None:
                adapted, base, reported = classes
                results.append(
                    (_divergence(adapted, reported), _divergence(adapted, base), _divergence(base, reported))
                )
            if number < len(local.ids) and form(local.ids[number]) != token.text:
                break
        return tuple(zip(*results, strict=True)) if results else ((), (), ())


def _read_classes(
    token: TokenProbabilities, adapted: "torch.Tensor", base: "torch.Tensor", form: Callable[[int], str]
) -> tuple[list[float], list[float], list[float]] | None:
    """Return the probabilities of the endpoint's tokens, and of all others together, of adapted, base and endpoint.

    A text that several tokens have is not told apart. Return None if the most probable texts are not found here.
    """
    count = min(_SEARCHED_TOKENS, len(adapted))
    ids_of_text: dict[str, set[int]] = defaultdict(set)
    for number in {*adapted.topk(count).indices.tolist(), *base.topk(count).indices.tolist()}:
        ids_of_text[form(number)].add(number)
    shown: dict[str, float] = defaultdict(float)
    for text, logprob in token.top:
        shown[text] += math.exp(min(0.0, logprob))
    texts = [text for text in shown if len(ids_of_text[text]) == 1]
    columns = [[float(row[list(ids_of_text[text])].exp().sum()) for text in texts] for row in (adapted, base)]
    columns.append([shown[text] for text in texts])
    if not texts or sum(columns[0]) + sum(columns[2]) < _MIN_MATCHED * (1 + sum(shown.values())):
        return None
    if 1 - sum(columns[2]) >= _MIN_REST:
        columns = [[*column, max(0.0, 1 - sum(column))] for column in columns]
    p, b, q = ([value / max(sum(column), 1e-300) for value in column] for column in columns)
    return p, b, q


def _divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """Return KL(p || q) in nats; probabilities of 0 count as very small ones."""
    return max(0.0, sum(x * math.log(x / max(y, 1e-12)) for x, y in zip(p, q, strict=True) if x > 0))
