"""Base against adapted: the same weights with the adapter switched off and on."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from lora_chat.config.recipe import EvaluationSection
from lora_chat.data.dataset import DialogueSet
from lora_chat.data.dialogue import Dialogue, Message
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.evaluation.loss import evaluate_loss, perplexity
from lora_chat.evaluation.questions import Question
from lora_chat.inference.generation import generate_replies

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pair:
    """One measure of both."""

    base: float
    adapted: float


@dataclass(frozen=True)
class Sample:
    """What both say to the same prompt; `reference` is what the held-out dialogue says."""

    prompt: str
    reference: str
    base: str
    adapted: str


@dataclass(frozen=True)
class ComparisonReport:
    """Everything measured, base against adapted."""

    validation_loss: Pair
    perplexity: Pair
    validation_dialogues: int
    samples: tuple[Sample, ...]
    facts: Pair | None
    """Share of questions answered right, 0 to 1."""
    questions: int
    answers: tuple[dict[str, Any], ...]
    """Every question with both replies and whether each is right."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    validation: DialogueSet,
    questions: Sequence[Question],
    system: str | None,
    settings: EvaluationSection,
    notice: Callable[[str], None],
) -> ComparisonReport:
    """Measure loss, replies and facts with the adapter off and on.

    `system` stands before every question. A block of plain text is prompted with its first half.
    """
    samples = [_make_probe(one, tokenizer) for one in islice(validation.read(), settings.samples)]
    head = [{"role": "system", "content": system}] if system is not None else []
    asked = [[*head, {"role": "user", "content": q.question}] for q in questions]
    prompts = [sample.ids for sample in samples]
    prompts += [render_ids(tokenizer, p, reply_follows=True) for p in asked]

    def measure(what: str) -> tuple[float, list[str]]:
        notice(f"Measuring {what}: {len(validation)} validation dialogues, {len(prompts)} replies")
        loss = evaluate_loss(model, validation.rows)
        return loss, generate_replies(model, tokenizer, prompts, stop_ids, settings.max_new_tokens)

    model.eval()
    with model.disable_adapter():
        base_loss, base = measure("the base")
    adapted_loss, adapted = measure("the adapted model")
    n = len(samples)
    right = [
        (q.is_answered_by(b), q.is_answered_by(a)) for q, b, a in zip(questions, base[n:], adapted[n:], strict=True)
    ]
    return ComparisonReport(
        validation_loss=Pair(base_loss, adapted_loss),
        perplexity=Pair(perplexity(base_loss), perplexity(adapted_loss)),
        validation_dialogues=len(validation),
        samples=tuple(
            Sample(sample.prompt, sample.reference, b, a)
            for sample, b, a in zip(samples, base[:n], adapted[:n], strict=True)
        ),
        facts=Pair(*(sum(side) / len(right) for side in zip(*right, strict=True))) if right else None,
        questions=len(questions),
        answers=tuple(
            {"question": q.question, "base": b, "adapted": a, "base_right": rb, "adapted_right": ra}
            for q, b, a, (rb, ra) in zip(questions, base[n:], adapted[n:], right, strict=True)
        ),
    )


@dataclass(frozen=True)
class _Probe:
    """A held-out prompt, as ids and as shown, and what it is followed by."""

    ids: list[int]
    prompt: str
    reference: str


def _make_probe(one: Dialogue | list[int], tokenizer: "PreTrainedTokenizerBase") -> _Probe:
    if isinstance(one, list):
        half = len(one) // 2 or 1
        return _Probe(one[:half], tokenizer.decode(one[:half]), tokenizer.decode(one[half:]))
    place = next(i for i, message in enumerate(one.messages) if message.role == "assistant")
    prompt = one.as_dicts[:place]
    ids = render_ids(tokenizer, prompt, reply_follows=True, tools=one.tool_list)
    return _Probe(ids, prompt[-1]["content"], _said(one.messages[place]))


def _said(message: Message) -> str:
    """Its text, or what it calls."""
    return message.content or " ".join(f"{call.name}({call.arguments})" for call in message.tool_calls)
