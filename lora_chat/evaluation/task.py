"""Everything that is measured of each model of a comparison: losses, replies and answers to general items."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.config.generation_section import GREEDY, GenerationSection
from lora_chat.config.recipe import EvaluationSection
from lora_chat.data.dataset import DialogueSet
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.data.encoding.turns import TurnReader
from lora_chat.evaluation.choose_metrics import ChosenMetrics, choose_metrics
from lora_chat.evaluation.loss import RowLosses
from lora_chat.evaluation.measurement import Measurement, Reply, ReplyItem
from lora_chat.evaluation.questions import Question
from lora_chat.evaluation.reply_items import read_reply_items
from lora_chat.evaluation.shared_measurements import PendingLosses, SharedMeasurements
from lora_chat.evaluation.written_calls import are_calls_readable
from lora_chat.inference.generation import decode_reply

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_PROMPT_END_TOKENS = 16
"""Tokens at the end of a prompt in which a template opens the reasoning of a reply."""


@dataclass(frozen=True)
class EvaluationTask:
    """Everything that is measured of each model of a comparison."""

    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: Sequence[int]
    validation: DialogueSet
    questions: Sequence[Question]
    items: Sequence[ReplyItem]
    """Held-out prompts that are answered; the samples are the first ones."""
    num_samples: int
    prompts: Sequence[Sequence[int]]
    """Prompts of the items, followed by the questions, as token ids."""
    max_new_tokens: int
    chosen: ChosenMetrics
    generation: GenerationSection = GREEDY

    @property
    def samples(self) -> Sequence[ReplyItem]:
        """Return the items that are shown side by side."""
        return self.items[: self.num_samples]

    def measure(self, model: "PreTrainedModel | PeftModel", model_name: str) -> Measurement:
        """Return the losses of the set and a reply to each prompt; `model_name` is for the progress message."""
        return self.start(model, model_name, SharedMeasurements()).read()

    def start(
        self, model: "PreTrainedModel | PeftModel", model_name: str, shared: SharedMeasurements
    ) -> "PendingMeasurement":
        """Measure this process's share of the losses and replies."""
        logger.info(f"Measuring {model_name}: {len(self.validation)} held-out dialogues, {len(self.prompts)} replies")
        losses = shared.measure_rows(model, self.validation.rows) if len(self.validation) else None
        pad = int(self.tokenizer.pad_token_id)
        replies = (
            shared.generate(model, pad, self.prompts, self.stop_ids, self.max_new_tokens, self.generation)
            if self.prompts
            else []
        )
        return PendingMeasurement(self, losses, replies)

    def read(self, losses: RowLosses | None, ids: Sequence[list[int]]) -> Measurement:
        """Return the measurement with the texts of replies."""
        replies, n = [decode_reply(self.tokenizer, reply) for reply in ids], len(self.items)
        return Measurement(losses, self.questions, replies[n:], self.items, self._parse_replies(replies[:n]))

    def _parse_replies(self, replies: Sequence[str]) -> list[Reply]:
        """Return the replies to the items, each with its content without reasoning."""
        reader = TurnReader(self.tokenizer, self.stop_ids)
        pairs = zip(self.items, replies, strict=True)
        return [
            Reply(text, text if item.is_text else reader.parse_reply(self._end_of(item), text)["content"])
            for item, text in pairs
        ]

    def _end_of(self, item: ReplyItem) -> str:
        """Return the end of a prompt, which may open the reasoning of the reply."""
        return str(self.tokenizer.decode(item.prompt_ids[-_PROMPT_END_TOKENS:]))


@dataclass(frozen=True)
class PendingMeasurement:
    """The measurement of a model, complete after the exchange with the other processes."""

    task: EvaluationTask
    losses: PendingLosses | None
    replies: Sequence[list[int]]
    """Ids of the replies to the prompts of the task."""

    def read(self) -> Measurement:
        """Return the measurement."""
        return self.task.read(self.losses.read() if self.losses else None, self.replies)


def _count_cut(items: Sequence[ReplyItem], tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int) -> int:
    """Return the number of references that are longer than a reply may be."""
    return sum(len(tokenizer.encode(item.reference, add_special_tokens=False)) > max_new_tokens for item in items)


def make_task(
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    validation: DialogueSet,
    questions: Sequence[Question],
    system: str | None,
    settings: EvaluationSection,
) -> EvaluationTask:
    """Return the task of a comparison: replies to the validation set, and questions after the system message."""
    items = read_reply_items(validation, tokenizer, samples=settings.samples, replies=settings.reply_count)
    system_messages = [{"role": "system", "content": system}] if system is not None else []
    question_chats = [[*system_messages, {"role": "user", "content": q.question}] for q in questions]
    prompts = [item.prompt_ids for item in items]
    prompts += [render_ids(tokenizer, chat, add_generation_prompt=True) for chat in question_chats]
    return EvaluationTask(
        tokenizer,
        stop_ids,
        validation,
        questions,
        items,
        settings.samples,
        prompts,
        settings.max_new_tokens,
        choose_metrics(
            items,
            questions,
            settings,
            _count_cut(items, tokenizer, settings.max_new_tokens),
            reads_calls=are_calls_readable(items, tokenizer, stop_ids),
        ),
        settings.generation,
    )
