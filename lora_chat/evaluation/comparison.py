"""Comparison of base and adapted model: the same weights with the adapter disabled and enabled."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

from lora_chat.config.generation_section import GREEDY, GenerationSection
from lora_chat.config.recipe import EvaluationSection
from lora_chat.data.dataset import DialogueSet
from lora_chat.data.dialogue import Dialogue, Message
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.thinking_switch import thinking_arguments
from lora_chat.evaluation.loss import evaluate_loss
from lora_chat.evaluation.metrics import METRICS, Measurement, MetricFigures, compute_metrics
from lora_chat.evaluation.questions import Question
from lora_chat.inference.generation import generate_replies
from lora_chat.models.adapter import without_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleReplies:
    """The replies of both models to a prompt of the validation set."""

    prompt: str
    reference: str
    """Reply of the dialogue itself."""
    base: str
    adapted: str


@dataclass(frozen=True)
class QuestionAnswers:
    """The answers of both models to a question, and whether they are correct."""

    question: str
    base: str
    adapted: str
    base_right: bool
    adapted_right: bool


@dataclass(frozen=True)
class ComparisonReport:
    """All results of a comparison."""

    figures: Mapping[str, MetricFigures]
    """Figures of every metric that has data, by its name."""
    validation_dialogues: int
    samples: tuple[SampleReplies, ...]
    answers: tuple[QuestionAnswers, ...]

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON; a metric without data is null."""
        pairs = {name: {"base": pair["base"], "adapted": pair["adapted"]} for name, pair in self.figures.items()}
        return {
            **{metric.name: pairs.get(metric.name) for metric in METRICS},
            "validation_dialogues": self.validation_dialogues,
            "samples": [asdict(sample) for sample in self.samples],
            "questions": len(self.answers),
            "answers": [asdict(answer) for answer in self.answers],
        }


def compare_with_base(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    validation: DialogueSet,
    questions: Sequence[Question],
    system: str | None,
    settings: EvaluationSection,
) -> ComparisonReport:
    """Measure loss, sample replies and answers with the adapter disabled and enabled.

    `system` precedes every question. The prompt of a block of plain text is its first half.
    """
    task = make_task(tokenizer, stop_ids, validation, questions, system, settings)
    model.eval()
    with without_adapter(model):
        base = task.measure(model, "the base")
    adapted = task.measure(model, "the adapted model")
    return ComparisonReport(
        figures=compute_metrics(base.measurement, adapted.measurement),
        validation_dialogues=len(validation),
        samples=tuple(
            SampleReplies(sample.prompt, sample.reference, base_reply, adapted_reply)
            for sample, base_reply, adapted_reply in zip(task.samples, base.samples, adapted.samples, strict=True)
        ),
        answers=tuple(
            QuestionAnswers(q.question, b, a, q.is_answered_by(b), q.is_answered_by(a))
            for q, b, a in zip(questions, base.measurement.answers, adapted.measurement.answers, strict=True)
        ),
    )


@dataclass(frozen=True)
class ModelOutputs:
    """The measurement of one model, and its replies to the prompts of the validation set."""

    measurement: Measurement
    samples: Sequence[str]


@dataclass(frozen=True)
class EvaluationTask:
    """Everything that is measured of each model of a comparison."""

    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: Sequence[int]
    validation: DialogueSet
    questions: Sequence[Question]
    samples: "Sequence[SamplePrompt]"
    prompts: Sequence[list[int]]
    """Prompts of the samples, followed by the questions, as token ids."""
    max_new_tokens: int
    generation: GenerationSection = GREEDY

    def measure(self, model: "PreTrainedModel | PeftModel", model_name: str) -> ModelOutputs:
        """Return the validation loss and a reply to each prompt; `model_name` is for the progress message."""
        logger.info(f"Measuring {model_name}: {len(self.validation)} validation dialogues, {len(self.prompts)} replies")
        loss = evaluate_loss(model, self.validation.rows) if len(self.validation) else None
        replies = (
            generate_replies(model, self.tokenizer, self.prompts, self.stop_ids, self.max_new_tokens, self.generation)
            if self.prompts
            else []
        )
        n = len(self.samples)
        return ModelOutputs(Measurement(loss, self.questions, replies[n:]), replies[:n])


def make_task(
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    validation: DialogueSet,
    questions: Sequence[Question],
    system: str | None,
    settings: EvaluationSection,
) -> EvaluationTask:
    """Return the task of a comparison: samples of the validation set, and questions after the system message."""
    prompts_of_samples = (_make_sample_prompt(dialogue, tokenizer) for dialogue in validation.read())
    samples = list(islice((sample for sample in prompts_of_samples if sample is not None), settings.samples))
    system_messages = [{"role": "system", "content": system}] if system is not None else []
    question_chats = [[*system_messages, {"role": "user", "content": q.question}] for q in questions]
    prompts = [sample.ids for sample in samples]
    prompts += [render_ids(tokenizer, chat, add_generation_prompt=True) for chat in question_chats]
    return EvaluationTask(
        tokenizer, stop_ids, validation, questions, samples, prompts, settings.max_new_tokens, settings.generation
    )


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt of the validation set, as token ids and as text, with the reply of the dialogue."""

    ids: list[int]
    prompt: str
    reference: str


def _make_sample_prompt(dialogue: Dialogue | list[int], tokenizer: "PreTrainedTokenizerBase") -> SamplePrompt | None:
    """Split a dialogue before its first answer, or a block of token ids in the middle; None without an answer."""
    if isinstance(dialogue, list):
        prompt_length = len(dialogue) // 2 or 1
        return SamplePrompt(
            dialogue[:prompt_length],
            tokenizer.decode(dialogue[:prompt_length]),
            tokenizer.decode(dialogue[prompt_length:]),
        )
    reply_index = dialogue.first_answer
    if reply_index is None:
        return None
    prompt = dialogue.as_dicts[:reply_index]
    arguments = thinking_arguments(tokenizer, dialogue.messages[reply_index].as_dict)
    ids = render_ids(tokenizer, prompt, add_generation_prompt=True, tools=dialogue.tool_list, arguments=arguments)
    return SamplePrompt(ids, prompt[-1]["content"], _message_text(dialogue.messages[reply_index]))


def _message_text(message: Message) -> str:
    """Return the text of a message, or its tool calls."""
    return message.content or " ".join(f"{call.name}({call.arguments})" for call in message.tool_calls)
