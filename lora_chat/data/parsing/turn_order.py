"""The order of messages: neighbours of one role are joined if wanted, and an open end is cut off.

The chat template decides about every other order, because it refuses the ones that it cannot write.
"""

from collections.abc import Sequence
from dataclasses import replace

from lora_chat.config.data import TurnOrder
from lora_chat.data.dialogue import InvalidDialogueError, Message
from lora_chat.data.parsing.row_notes import RowNotes

_JOINED_ROLES = ("system", "user", "assistant")
"""Roles whose neighbours are joined; neighbouring results belong to different calls."""


def arrange_messages(
    messages: Sequence[Message], turn_order: TurnOrder = "refuse", notes: RowNotes | None = None
) -> tuple[Message, ...]:
    """Return the messages up to the last reply, joined if `turn_order` is join, and note both.

    Raises InvalidDialogueError if no reply is trained, or if joining would change the meaning.
    """
    joined = _join_neighbours(messages) if turn_order == "join" else list(messages)
    end = max((number for number, message in enumerate(joined, 1) if message.role == "assistant"), default=0)
    if not end:
        raise InvalidDialogueError("has no assistant message, so nothing can be learned from it")
    if not any(message.trained for message in joined if message.role == "assistant"):
        raise InvalidDialogueError("has no assistant message that is trained")
    if notes is not None and len(joined) < len(messages):
        notes.add("joined_messages", len(messages) - len(joined))
    if notes is not None and end < len(joined):
        notes.add("open_end")
    return tuple(joined[:end])


def _join_neighbours(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with neighbours of one role joined."""
    joined: list[Message] = []
    for number, message in enumerate(messages, 1):
        if joined and joined[-1].role == message.role and message.role in _JOINED_ROLES:
            joined[-1] = _join(joined[-1], message, number)
        else:
            joined.append(message)
    return joined


def _join(first: Message, second: Message, number: int) -> Message:
    """Return two messages as one; raises InvalidDialogueError if that would change the meaning."""
    reason = None
    if first.trained != second.trained:
        reason = "one of them is trained and the other is not"
    elif first.name != second.name:
        reason = "they have different names"
    elif second.reasoning is not None and (first.content.strip() or first.tool_calls):
        reason = "the second has reasoning, which would move before the text of the first"
    elif first.reasoning is not None and second.reasoning is not None:
        reason = "both have reasoning"
    elif first.tool_calls and second.content.strip():
        reason = "the text of the second would move before the calls of the first"
    if reason:
        raise InvalidDialogueError(
            f"message {number} cannot be joined with the {first.role} message before it (data.turn_order): {reason}"
        )
    return replace(
        first,
        content="\n\n".join(text for text in (first.content, second.content) if text.strip()),
        reasoning=second.reasoning if first.reasoning is None else first.reasoning,
        tool_calls=first.tool_calls + second.tool_calls,
    )
