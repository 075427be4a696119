"""Base against adapted: the same weights with the adapter switched off and on."""

import logging
from collections.abc import Sequence
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

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricPair:
    """One measure of both."""

    base: float
    adapted: float


@dataclass(frozen=True)
class SampleReplies:
    """What both say to the same prompt; `reference` is what the held-out dialogue says."""

    prompt: str
    reference: str
    base: str
    adapted: str


@dataclass(frozen=True)
class ComparisonReport:
    """Everything measured, base against adapted."""

    validation_loss: MetricPair
    perplexity: MetricPair
    validation_dialogues: int
    samples: tuple[SampleReplies, ...]
    facts: MetricPair | None
    """Share of questions answered right, 0 to 1."""
    questions: int
    answers: tuple[dict[str, Any], ...]
    """Every question with both replies and whether each is right."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare_with_base(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    validation: DialogueSet,
    questions: Sequence[Question],
    system: str | None,
    settings: EvaluationSection,
) -> ComparisonReport:
    """Measure loss, replies and facts with the adapter off and on.

    `system` stands before every question. A block of plain text is prompted with its first half.
    """
    samples = [_make_sample_prompt(one, tokenizer) for one in islice(validation.read(), settings.samples)]
    system_messages = [{"role": "system", "content": system}] if system is not None else []
    question_chats = [[*system_messages, {"role": "user", "content": q.question}] for q in questions]
    prompts = [sample.ids for sample in samples]
    prompts += [render_ids(tokenizer, p, add_generation_prompt=True) for p in question_chats]

    def measure(what: str) -> tuple[float, list[str]]:
        logger.info(f"Measuring {what}: {len(validation)} validation dialogues, {len(prompts)} replies")
        loss = evaluate_loss(model, validation.rows)
        return loss, generate_replies(model, tokenizer, prompts, stop_ids, settings.max_new_tokens)

    model.eval()
    with model.disable_adapter():
        base_loss, base = measure("the base")
    adapted_loss, adapted = measure("the adapted model")
    n = len(samples)
    correct_pairs = [
        (q.is_answered_by(b), q.is_answered_by(a)) for q, b, a in zip(questions, base[n:], adapted[n:], strict=True)
    ]
    return ComparisonReport(
        validation_loss=MetricPair(base_loss, adapted_loss),
        perplexity=MetricPair(perplexity(base_loss), perplexity(adapted_loss)),
        validation_dialogues=len(validation),
        samples=tuple(
            SampleReplies(sample.prompt, sample.reference, b, a)
            for sample, b, a in zip(samples, base[:n], adapted[:n], strict=True)
        ),
        facts=MetricPair(*(sum(side) / len(correct_pairs) for side in zip(*correct_pairs, strict=True)))
        if correct_pairs
        else None,
        questions=len(questions),
        answers=tuple(
            {"question": q.question, "base": b, "adapted": a, "base_right": rb, "adapted_right": ra}
            for q, b, a, (rb, ra) in zip(questions, base[n:], adapted[n:], correct_pairs, strict=True)
        ),
    )


@dataclass(frozen=True)
class _SamplePrompt:
    """A held-out prompt, as ids and as shown, and what it is followed by."""

    ids: list[int]
    prompt: str
    reference: str


def _make_sample_prompt(dialogue: Dialogue | list[int], tokenizer: "PreTrainedTokenizerBase") -> _SamplePrompt:
    if isinstance(dialogue, list):
        prompt_length = len(dialogue) // 2 or 1
        return _SamplePrompt(
            dialogue[:prompt_length],
            tokenizer.decode(dialogue[:prompt_length]),
            tokenizer.decode(dialogue[prompt_length:]),
        )
    reply_index = next(i for i, message in enumerate(dialogue.messages) if message.role == "assistant")
    prompt = dialogue.as_dicts[:reply_index]
    ids = render_ids(tokenizer, prompt, add_generation_prompt=True, tools=dialogue.tool_list)
    return _SamplePrompt(ids, prompt[-1]["content"], _message_text(dialogue.messages[reply_index]))


def _message_text(message: Message) -> str:
    """Its text, or what it calls."""
    return message.content or " ".join(f"{call.name}({call.arguments})" for call in message.tool_calls)
