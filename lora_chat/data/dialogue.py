"""What a dialogue is: messages, perhaps tools, and which order of roles makes sense."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """What an assistant asks a tool to do."""

    name: str
    arguments: str
    """A JSON object, as text."""
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One entry of a dialogue."""

    role: Role
    content: str
    reasoning: str | None = None
    """What an assistant thought before it answered."""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    trained: bool = True
    """Whether an assistant's message carries loss."""

    @property
    def as_dict(self) -> dict[str, Any]:
        """As chat templates want it, and as JSON lines have it."""
        result: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            result["reasoning_content"] = self.reasoning
            result["thinking"] = self.reasoning  # gpt-oss and LFM2 read this; transformers before 5.23 does not fill it
        if self.tool_calls:
            result["tool_calls"] = [
                {
                    **({"id": call.id} if call.id is not None else {}),
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for call in self.tool_calls
            ]
        if self.name is not None:
            result["name"] = self.name
        if self.tool_call_id is not None:
            result["tool_call_id"] = self.tool_call_id
        return result


@dataclass(frozen=True)
class Dialogue:
    """A checked conversation: perhaps a system message, then user and assistant in turn, assistant last.

    Between a call of the assistant's and its next words stand the tools' results.
    """

    messages: tuple[Message, ...]
    line: int = 0
    """Line of its file, counted from 1; 0 for one that was not read."""
    tools: str | None = None
    """What tools there are: a JSON list of function descriptions, as text."""
    path: str = ""
    """The file it was read from."""

    @property
    def as_dicts(self) -> list[dict[str, Any]]:
        """The messages as chat templates want them."""
        return [message.as_dict for message in self.messages]

    @property
    def as_row(self) -> dict[str, Any]:
        """What a JSON line needs so that reading it gives the same dialogue."""
        messages = [m.as_dict | ({} if m.trained else {"train": False}) for m in self.messages]
        return {"messages": messages} | ({"tools": json.loads(self.tools)} if self.tools else {})

    @property
    def digest(self) -> int:
        """64 bits of what is said; equal for dialogues that say the same."""
        said = json.dumps([self.as_dicts, self.tools], ensure_ascii=False)
        return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "big", signed=True)

    @property
    def last_turn_only(self) -> "Dialogue":
        """The same with loss on its last reply alone; raises InvalidDialogueError if that one is not to be trained."""
        last = max(i for i, message in enumerate(self.messages) if message.role == "assistant")
        if not self.messages[last].trained:
            raise InvalidDialogueError(
                "has a last reply that is not to be trained, and only the last ones are (turns: last)"
            )
        messages = (replace(m, trained=m.trained and i == last) for i, m in enumerate(self.messages))
        return replace(self, messages=tuple(messages))

    @property
    def tool_list(self) -> list[dict[str, Any]] | None:
        """The tools as chat templates want them."""
        return json.loads(self.tools) if self.tools else None


@dataclass(frozen=True)
class Document:
    """Plain text to go on with, or a piece of it."""

    text: str
    line: int = 0
    path: str = ""
    is_first_piece: bool = True
    """Whether the text begins with this piece."""
    has_next_piece: bool = False
    """Whether the next piece belongs to the same text, so that no end stands between them."""
    lines: int = 1
    """How many lines of its file it covers."""


class InvalidDialogueError(ValueError):
    """The reason why something is not a dialogue; the reader adds file and line."""

    faulty_entry: Any = None
    """The part of it that is at fault, if it is one."""


def check_role_order(messages: Sequence[Message]) -> None:
    """Raise InvalidDialogueError unless user and assistant take turns and something can be learned."""
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise InvalidDialogueError("has no assistant message: nothing in it could be learned")
    expected: tuple[str, ...] = ("user",)
    for number, message in enumerate(messages, 1):
        if number == 1 and message.role == "system":
            continue
        if message.role not in expected:
            raise InvalidDialogueError(
                f"message {number} is from {message.role} where {' or '.join(expected)} should speak "
                "(an optional system message, then user and assistant in turn)"
            )
        expected = _next_roles(message)
    if roles[-1] != "assistant":
        speaker = "the user" if roles[-1] == "user" else "a tool"
        raise InvalidDialogueError(f"ends with {speaker}; the last message must be the assistant's")
    if not any(message.trained for message in messages if message.role == "assistant"):
        raise InvalidDialogueError("has no assistant message that is to be trained")


def _next_roles(message: Message) -> tuple[str, ...]:
    if message.role == "user":
        return ("assistant",)
    if message.role == "tool":
        return ("assistant", "tool")
    return ("tool",) if message.tool_calls else ("user",)
