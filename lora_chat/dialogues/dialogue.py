"""Message and Dialogue, and which order of roles is a dialogue."""

from dataclasses import dataclass
from typing import Any, Literal, cast

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")
_MARKS = {"\U000f0000", "\U000f0001"}
"""transformers marks control tokens in content with these private characters, and removes them."""


@dataclass(frozen=True)
class Message:
    """One entry of a dialogue."""

    role: Role
    content: str


@dataclass(frozen=True)
class Dialogue:
    """A checked conversation: perhaps a system message, then user and assistant in turn, assistant last."""

    messages: tuple[Message, ...]
    line: int = 0
    """Line of its file, counted from 1; 0 for one that was not read."""

    @property
    def as_dicts(self) -> list[dict[str, str]]:
        """The messages as chat templates want them."""
        return [{"role": m.role, "content": m.content} for m in self.messages]


class NotADialogue(ValueError):
    """The reason why something is not a dialogue; the reader adds file and line."""


def make_dialogue(row: Any, line: int = 0) -> Dialogue:
    """Check a decoded JSON row and make a Dialogue of it; raises NotADialogue with the reason.

    Only `messages` is read: whatever else stands in the row can neither reach the template nor the trainer.
    """
    if not isinstance(row, dict):
        raise NotADialogue("is not a JSON object with `messages`")
    if "messages" not in row:
        raise NotADialogue(f"has no `messages` (its keys: {', '.join(ascii(k) for k in list(row)[:8]) or 'none'})")
    entries = row["messages"]
    if not isinstance(entries, list) or not entries:
        raise NotADialogue("`messages` must be a list with at least one message")
    messages = tuple(_make_message(entry, number) for number, entry in enumerate(entries, 1))
    _check_order(messages)
    return Dialogue(messages, line)


def _make_message(entry: Any, number: int) -> Message:
    if not isinstance(entry, dict):
        raise NotADialogue(f"message {number} is not an object with `role` and `content`")
    role, content = entry.get("role"), entry.get("content")
    if role not in ROLES:
        raise NotADialogue(f"message {number} has the role {role!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise NotADialogue(f"message {number} ({role}) has no text as `content`")
    if role != "system" and not content.strip():
        raise NotADialogue(f"message {number} ({role}) is empty")
    extra = sorted(set(entry) - {"role", "content"})
    if extra:
        raise NotADialogue(f"message {number} has {extra[0]!a}, which would be lost; only role and content are read")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise NotADialogue(f"message {number} ({role}) holds half a surrogate pair, which is no character") from None
    if _MARKS & set(content):
        raise NotADialogue(f"message {number} ({role}) holds U+F0000 or U+F0001, which the tokenizer would drop")
    return Message(cast(Role, role), content)


def _check_order(messages: tuple[Message, ...]) -> None:
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise NotADialogue("has no assistant message: nothing in it could be learned")
    turns = roles[1:] if roles[0] == "system" else roles
    for place, role in enumerate(turns):
        wanted = "assistant" if place % 2 else "user"
        if role != wanted:
            number = place + 1 + (roles[0] == "system")
            raise NotADialogue(
                f"message {number} is from {role} where {wanted} should speak "
                "(an optional system message, then user and assistant in turn)"
            )
    if roles[-1] != "assistant":
        raise NotADialogue("ends with the user; the last message must be the assistant's")
