"""The check that a server computes the function of training, through the generator that will answer."""

import math
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.config.plan import PrecisionPlan
from lora_chat.errors import DataError, IntegrityError, UnavailableError
from lora_chat.export.parity.reference import (
    REFERENCE_QUESTIONS,
    REFERENCE_REPLY_TOKENS,
    REFERENCE_TOP_TOKENS,
    ModelReference,
    TopTokens,
    make_reference_chat,
)
from lora_chat.export.parity.reference_outputs import (
    compare_with_reference,
    judge_distance,
)
from lora_chat.export.parity.tolerances import REFERENCE_LIMITS
from lora_chat.inference.continuous.batch_generator import BatchGenerator
from lora_chat.inference.continuous.request import Finish, GeneratedToken, GenerationRequest, QueueFullError
from lora_chat.models.logits import compute_logits
from lora_chat.models.named_adapters import using_adapter
from lora_chat.pipeline.admitted_model import AdmissionCheck
from lora_chat.pipeline.served_prompt import render_served_prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_REPLY_SECONDS = 600.0
"""Longest wait for a free place in the queue, and for a token of the generator, in seconds."""
_QUEUE_SECONDS = 0.05
"""Time between two looks at a full queue, in seconds."""
_NO_CHANGE_KL = 1e-9
"""KL to the bare base up to which an adapter changes nothing, in nats per token."""
_MAX_PROMPT_TOKENS = 2048
"""Tokens of the prompts that are scored; a long system message is part of each."""
_GENERATED_TOP_TOKENS = 20
"""Number of alternatives of each generated token that are compared."""


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter in a generator, and everything that its prompts need."""

    generator: BatchGenerator
    adapter: str
    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: tuple[int, ...]
    system: str | None
    precision: PrecisionPlan


def check_reference(served: ServedAdapter, reference: ModelReference | None) -> list[AdmissionCheck]:
    """Compare the outputs of a server with the reference of training.

    Two steps lead from the generator to the reference: its own replies are scored again by the adapter in plain PEFT,
    and so are the replies of the reference. All scores are computed between two steps of the generator, and it replies
    beside its other requests. Without a reference only the first step is possible. Raises IntegrityError if this is not
    the model of training.
    """
    questions = [entry.question for entry in reference.replies] if reference else range(len(REFERENCE_QUESTIONS))
    try:
        prompts = _render_prompts(served, questions)
    except DataError as error:
        if reference:
            raise IntegrityError(f"the template refuses a built-in question: {error}") from error
        return [AdmissionCheck("reference", None, f"no reference, and the template refuses questions: {error}")]
    prompts = _select_prompts(prompts)
    if reference:
        entries = tuple(entry for entry in reference.replies if entry.question in prompts)
        reference = reference.model_copy(update={"replies": entries})
    generated = _generate_all(served, prompts)
    replies = {question: tuple(token.token for token in tokens) for question, tokens in generated.items()}
    scores = _score_all(served, prompts, replies)
    distance = _measure_generated(generated, scores)
    text = (
        f"served path against plain adapted model: KL {distance.mean_kl:.1e} on {distance.positions} tokens "
        f"(the bare base {distance.control_kl:.1e})"
    )
    limit = REFERENCE_LIMITS["same precision"]
    if judge_distance(distance.mean_kl, distance.control_kl, limit, served.precision.dtype) is False:
        raise IntegrityError(f"the server does not compute the adapter: {text}, allowed {limit:.0e}")
    effect = _check_effect(scores.effect)
    if reference is None:
        return [AdmissionCheck("reference", None, f"no reference in the receipt; {text}"), *effect]
    scores = _score_all(served, prompts, {entry.question: entry.reply for entry in reference.replies})
    comparison = compare_with_reference(reference, prompts, served.precision, scores.adapted, scores.base)
    if comparison.passed is False:
        raise IntegrityError(f"the loaded model is not the model of training: {comparison.describe()}")
    return [AdmissionCheck("reference", comparison.passed, f"{comparison.describe()}; {text}"), *effect]


@dataclass(frozen=True)
class GeneratedDistance:
    """Distance of generated tokens from an adapter in the classes of their listed alternatives, in nats per token."""

    positions: int
    mean_kl: float
    control_kl: float
    """Distance of the bare base in the same classes."""


def _check_effect(effect: float) -> list[AdmissionCheck]:
    """Return a failed check for an adapter that changes nothing, which is served with a warning."""
    if effect > _NO_CHANGE_KL:
        return []
    return [AdmissionCheck("effect", None, "the adapter changes nothing: it computes what the bare base computes")]


def _select_prompts(prompts: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """Return at least the first prompt, and others up to a number of tokens, because requests wait for each score."""
    selected: dict[int, tuple[int, ...]] = {}
    for question, prompt in prompts.items():
        if selected and sum(map(len, selected.values())) + len(prompt) > _MAX_PROMPT_TOKENS:
            break
        selected[question] = prompt
    return selected


def _render_prompts(served: ServedAdapter, questions: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return the ids of built-in questions as a request for them gives."""
    return {
        question: tuple(
            render_served_prompt(served.tokenizer, served.stop_ids, served.system, make_reference_chat(question, None))
        )
        for question in questions
    }


@dataclass(frozen=True)
class _Scores:
    """Logits of adapter and base before each token of the replies, by prompt and reply or by question."""

    by_ids: "dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]]"
    adapted_by_question: "dict[int, torch.Tensor]"
    base_by_question: "dict[int, torch.Tensor]"
    effect: float
    """Mean KL(adapter || base), in nats per token."""

    def adapted(self, ids: Sequence[int], positions: Sequence[int]) -> "torch.Tensor":
        """Return the logits of the adapter."""
        return self.by_ids[tuple(ids)][0]

    def base(self, ids: Sequence[int], positions: Sequence[int]) -> "torch.Tensor":
        """Return the logits of the bare base."""
        return self.by_ids[tuple(ids)][1]


def _read_top(logits: "torch.Tensor", count: int = REFERENCE_TOP_TOKENS) -> tuple[TopTokens, ...]:
    """Return the most probable tokens at each position of logits (positions, vocabulary)."""
    values, ids = logits.double().log_softmax(-1).topk(min(count, logits.shape[-1]))
    return tuple(
        tuple(zip(row_ids, row, strict=True)) for row_ids, row in zip(ids.tolist(), values.tolist(), strict=True)
    )


def _score_all(
    served: ServedAdapter, prompts: dict[int, tuple[int, ...]], replies: dict[int, tuple[int, ...]]
) -> _Scores:
    """Score all replies with the adapter and with the bare base, one reply between two steps of the generator."""
    by_ids, adapted_logits, base_logits, kls = {}, {}, {}, []
    for question, prompt in prompts.items():
        ids = (*prompt, *replies[question])
        positions = range(len(prompt) - 1, len(ids) - 1)

        def score(model: "PreTrainedModel") -> "tuple[torch.Tensor, torch.Tensor]":
            return (
                _score(model, served.adapter, ids, positions),  # noqa: B023  # called before the next iteration
                _score(model, None, ids, positions),  # noqa: B023
            )

        adapted, base = served.generator.run_between_steps(score)
        by_ids[ids], adapted_logits[question], base_logits[question] = (adapted, base), adapted, base
        p, q = adapted.double().log_softmax(-1), base.double().log_softmax(-1)
        kls += (p.exp() * (p - q)).sum(-1).tolist()
    return _Scores(by_ids, adapted_logits, base_logits, sum(kls) / len(kls))


def _score(
    model: "PreTrainedModel", adapter: str | None, ids: Sequence[int], positions: Sequence[int]
) -> "torch.Tensor":
    """Return the logits (positions, vocabulary) of one adapter or of the bare base, on the CPU."""
    import torch

    with torch.inference_mode(), using_adapter(model, adapter):
        row = torch.tensor([list(ids)], device=model.device)
        logits = compute_logits(model, torch.tensor(list(positions), device=model.device), input_ids=row)
    return logits[0].float().cpu()


def _generate_all(served: ServedAdapter, prompts: dict[int, tuple[int, ...]]) -> dict[int, list[GeneratedToken]]:
    """Return the generator's greedy replies to all prompts, which it answers beside its other requests.

    Raises UnavailableError if it cannot answer now.
    """
    received: dict[int, queue.SimpleQueue[GeneratedToken | Finish]] = {q: queue.SimpleQueue() for q in prompts}
    for question, prompt in prompts.items():
        request = GenerationRequest(
            prompt, served.adapter, frozenset(), REFERENCE_REPLY_TOKENS, top_logprobs=_GENERATED_TOP_TOKENS
        )
        _submit_when_free(served.generator, request, received[question].put)
    return {question: _receive(received[question]) for question in prompts}


def _submit_when_free(
    generator: BatchGenerator, request: GenerationRequest, receive: Callable[[GeneratedToken | Finish], None]
) -> None:
    """Submit a request as soon as the queue has room for it. Raise UnavailableError if that takes ten minutes."""
    end = time.monotonic() + _REPLY_SECONDS
    while True:
        try:
            generator.submit(request, receive)
        except QueueFullError as error:
            if time.monotonic() > end or not generator.is_alive:
                raise UnavailableError("the server has too many waiting requests to check a model now") from error
            time.sleep(_QUEUE_SECONDS)
        else:
            return


def _receive(items: "queue.SimpleQueue[GeneratedToken | Finish]") -> list[GeneratedToken]:
    """Return the tokens of a reply. Raises UnavailableError if it fails."""
    tokens = []
    try:
        while isinstance(item := items.get(timeout=_REPLY_SECONDS), GeneratedToken):
            tokens.append(item)
    except queue.Empty as error:
        raise UnavailableError("the generator gave no token in ten minutes") from error
    if item.reason != "length":
        raise UnavailableError(f"the generator ended a reply of the check: {item.reason} {item.message}")
    return tokens


def _measure_generated(generated: dict[int, list[GeneratedToken]], scores: _Scores) -> GeneratedDistance:
    """Return the distance of generated tokens from the adapter in plain PEFT after the same tokens."""
    kls, controls = [], []
    for question, tokens in generated.items():
        adapted = _read_top(scores.adapted_by_question[question])
        base = _read_top(scores.base_by_question[question], _GENERATED_TOP_TOKENS)
        kls += [common_kl(top, token.top) for top, token in zip(adapted, tokens, strict=True)]
        controls += [common_kl(top, other) for top, other in zip(adapted, base, strict=True)]
    return GeneratedDistance(len(kls), sum(kls) / len(kls), sum(controls) / len(controls))


def common_kl(p_top: TopTokens, q_top: TopTokens) -> float:
    """Return KL(P || Q) of the tokens that both lists have, with all others as one class, in nats (a lower bound)."""
    p, q = dict(p_top), dict(q_top)
    common = p.keys() & q.keys()
    kl = sum(math.exp(p[token]) * (p[token] - q[token]) for token in common)
    rest_p = 1 - sum(math.exp(p[token]) for token in common)
    rest_q = 1 - sum(math.exp(q[token]) for token in common)
    if rest_p > _ROUNDED_REST:
        kl += rest_p * math.log(rest_p / max(rest_q, _ROUNDED_REST))
    return kl if math.isnan(kl) else max(0.0, kl)


_ROUNDED_REST = 1e-6
"""Probability of all other tokens that rounding of the listed ones can hide."""
