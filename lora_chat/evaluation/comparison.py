"""Base against adapted: the same weights with the adapter switched off and on."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lora_chat.dialogues.chat_template import render_ids
from lora_chat.dialogues.dialogue import Dialogue, Message
from lora_chat.dialogues.encoding import EncodedDialogue
from lora_chat.evaluation.scores import Question, evaluate_loss, perplexity
from lora_chat.models.generation import generate_replies
from lora_chat.planning.recipe import EvaluationSection

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
    validation: Sequence[Dialogue],
    rows: Sequence[EncodedDialogue],
    questions: Sequence[Question],
    system: str | None,
    settings: EvaluationSection,
    notice: Callable[[str], None],
) -> ComparisonReport:
    """Measure loss, replies and facts with the adapter off and on.

    `rows` are the encoded `validation` dialogues; `system` stands before every question.
    """
    samples = [(d, _first_prompt(d)) for d in validation[: settings.samples]]
    head = [{"role": "system", "content": system}] if system is not None else []
    asked = [[*head, {"role": "user", "content": q.question}] for q in questions]
    prompts = [render_ids(tokenizer, p, reply_follows=True, tools=d.tool_list) for d, p in samples]
    prompts += [render_ids(tokenizer, p, reply_follows=True) for p in asked]

    def measure(what: str) -> tuple[float, list[str]]:
        notice(f"Measuring {what}: {len(validation)} validation dialogues, {len(prompts)} replies")
        loss = evaluate_loss(model, rows)
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
            Sample(p[-1]["content"], _said(d.messages[len(p)]), b, a)
            for (d, p), b, a in zip(samples, base[:n], adapted[:n], strict=True)
        ),
        facts=Pair(*(sum(side) / len(right) for side in zip(*right, strict=True))) if right else None,
        questions=len(questions),
        answers=tuple(
            {"question": q.question, "base": b, "adapted": a, "base_right": rb, "adapted_right": ra}
            for q, b, a, (rb, ra) in zip(questions, base[n:], adapted[n:], right, strict=True)
        ),
    )


def _said(message: Message) -> str:
    """Its text, or what it calls."""
    return message.content or " ".join(f"{call.name}({call.arguments})" for call in message.tool_calls)


def _first_prompt(dialogue: Dialogue) -> list[dict[str, Any]]:
    """The messages before the first reply."""
    messages = dialogue.as_dicts
    return messages[: next(i for i, m in enumerate(messages) if m["role"] == "assistant")]
