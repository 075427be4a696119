"""Check texts, reasoning and names of a message; what the tokenizer cannot keep is refused."""

from collections.abc import Mapping

from lora_chat.data.dialogue import InvalidDialogueError

Entry = Mapping[str, object]
"""A message as the data has it, unchecked."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_FORBIDDEN_CHARACTERS = {"\U000f0000", "\U000f0001"}
"""Private characters with which control tokens are marked; transformers removes them from content."""


def check_text(text: str, where: str) -> str:
    """Return a text; raises InvalidDialogueError for characters that the tokenizer cannot keep."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidDialogueError(f"{where} contains half a surrogate pair, which is not a character") from None
    if _FORBIDDEN_CHARACTERS & set(text):
        raise InvalidDialogueError(f"{where} contains U+F0000 or U+F0001, which the tokenizer would drop")
    return text


def read_reasoning(entry: Entry, where: str) -> str | None:
    """Return the reasoning of a message, which may be under several keys but must be one text."""
    texts = [text for text in map(entry.get, REASONING_KEYS) if text not in (None, "")]
    if not texts:
        return None
    first = texts[0]
    if not isinstance(first, str) or any(text != first for text in texts):
        raise InvalidDialogueError(f"{where} has reasoning that is not one text")
    return check_text(first, where)


def read_name(entry: Entry, key: str, where: str) -> str | None:
    """Return the text under a key, or None."""
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidDialogueError(f"{where} has a `{key}` that is not text")
    return check_text(value, where)
