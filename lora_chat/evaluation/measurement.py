"""What was measured of one model: losses of rows, answers to questions and replies to held-out prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_chat.data.dialogue import ToolCall
from lora_chat.evaluation.loss import RowLosses
from lora_chat.evaluation.questions import Question


@dataclass(frozen=True)
class ReplyItem:
    """A held-out prompt with the reply of its dialogue."""

    prompt_ids: Sequence[int]
    prompt: str
    """Text of the last message of the prompt."""
    reference: str
    """Text of the reply, or its calls as text."""
    calls: tuple[ToolCall, ...] = ()
    is_text: bool = False
    """Whether it is a block of plain text, divided in the middle."""


@dataclass(frozen=True)
class Reply:
    """The reply of a model to an item."""

    text: str
    content: str
    """Text without reasoning, which is compared with the reference."""


@dataclass(frozen=True)
class Measurement:
    """The measurements of one model, base or adapted."""

    losses: RowLosses | None
    """Losses of the rows of the evaluated set; None without one."""
    questions: Sequence[Question]
    answers: Sequence[str]
    """The model's reply to each question."""
    items: Sequence[ReplyItem] = ()
    replies: Sequence[Reply] = ()
    """The model's reply to each item."""
