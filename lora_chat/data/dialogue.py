"""Dialogues and documents: their messages, tool calls and tools."""

import hashlib
import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ChatMessage = dict[str, Any]
"""A message in the form of chat templates; templates decide which keys they read."""
ToolDescription = dict[str, Any]
"""A function description in the form of chat templates."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool by the assistant."""

    name: str
    arguments: str
    """JSON text of an object."""
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """A message of a dialogue."""

    role: Role
    content: str
    reasoning: str | None = None
    """Reasoning of the assistant before its answer."""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    trained: bool = True
    """Whether a message of the assistant carries loss."""

    @property
    def as_dict(self) -> ChatMessage:
        """Return the message in the form of chat templates and of JSON lines."""
        result: ChatMessage = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            result["reasoning_content"] = self.reasoning
            result["thinking"] = self.reasoning  # for gpt-oss and LFM2; transformers before 5.23 does not set it
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
    """A checked conversation that ends with a message of the assistant; the chat template decides on other orders."""

    messages: tuple[Message, ...]
    line: int = 0
    """Line in its file, from 1; 0 if it was not read from a file."""
    tools: str | None = None
    """JSON text of the list of function descriptions."""
    path: str = ""
    """File of the dialogue."""
    loss_on_prompts: bool = False
    """Whether all tokens carry loss, except replies that are not trained."""

    @property
    def as_dicts(self) -> list[ChatMessage]:
        """Return the messages in the form of chat templates."""
        return [message.as_dict for message in self.messages]

    @property
    def as_row(self) -> dict[str, object]:
        """Return the JSON object from which the same dialogue can be read."""
        messages = [m.as_dict | ({} if m.trained else {"train": False}) for m in self.messages]
        tools = {"tools": json.loads(self.tools)} if self.tools else {}
        return {"messages": messages, **tools, **({"loss": "all"} if self.loss_on_prompts else {})}

    @property
    def digest(self) -> int:
        """Return a digest of 64 bits of the messages and tools, as a signed integer."""
        content = json.dumps([self.as_dicts, self.tools], ensure_ascii=False)
        return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big", signed=True)

    @property
    def last_turn_only(self) -> "Dialogue":
        """Return the dialogue with loss on its last reply only; raises InvalidDialogueError if that is not trained."""
        last = max(i for i, message in enumerate(self.messages) if message.role == "assistant")
        if not self.messages[last].trained:
            raise InvalidDialogueError("has a last reply that is not trained, but turns: last trains no other reply")
        messages = (replace(m, trained=m.trained and i == last) for i, m in enumerate(self.messages))
        return replace(self, messages=tuple(messages), loss_on_prompts=False)

    @property
    def with_loss_on_prompts(self) -> "Dialogue":
        """Return the dialogue with loss on prompts too; raises InvalidDialogueError if a prompt is marked without."""
        for number, message in enumerate(self.messages, 1):
            if message.role != "assistant" and not message.trained:
                raise InvalidDialogueError(
                    f"message {number} ({message.role}) is marked as not trained, but loss: all trains every message "
                    "except marked replies"
                )
        return replace(self, loss_on_prompts=True)

    @property
    def has_neighbours(self) -> bool:
        """Return whether the system, the user or the assistant has several messages in a row."""
        return any(a.role == b.role != "tool" for a, b in pairwise(self.messages))

    @property
    def first_answer(self) -> int | None:
        """Return the index of the first reply to a question or other prompt; None if nothing comes before a reply."""
        asked = False
        for index, message in enumerate(self.messages):
            if message.role == "assistant" and index and (asked or message.trained):
                return index
            asked = asked or message.role == "user"
        return None

    @property
    def tool_list(self) -> list[ToolDescription] | None:
        """Return the tools in the form of chat templates."""
        return json.loads(self.tools) if self.tools else None


@dataclass(frozen=True)
class Document:
    """A plain text that is trained as a whole, or a piece of it."""

    text: str
    line: int = 0
    path: str = ""
    is_first_piece: bool = True
    """Whether this piece begins the text."""
    has_next_piece: bool = False
    """Whether the next piece continues the text, so that no EOS is put between them."""
    lines: int = 1
    """Number of lines of its file."""


class InvalidDialogueError(ValueError):
    """The reason why a row is not a dialogue; the reader adds file and line."""

    faulty_entry: object = None
    """The faulty message, if a single one is the reason."""
