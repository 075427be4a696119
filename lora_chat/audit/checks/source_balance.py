"""The share of each file in the text with loss."""

from lora_chat.data.dialogue import Dialogue

_MAX_SOURCE_SHARE = 0.9


class SourceBalance:
    """The number of bytes of trained replies in each file."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}

    def add(self, dialogue: Dialogue) -> None:
        """Count the replies with loss, in UTF-8."""
        size = 0
        for message in dialogue.messages:
            if message.role == "assistant" and message.trained:
                for text in (message.content, message.reasoning or "", *(c.arguments for c in message.tool_calls)):
                    size += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        self._bytes[dialogue.path] = self._bytes.get(dialogue.path, 0) + size

    def shares(self) -> dict[str, float]:
        """Return the share of each file, in the order in which the files were read."""
        total = sum(self._bytes.values()) or 1
        return {path: size / total for path, size in self._bytes.items()}

    def dominant_path(self) -> str | None:
        """Return the file with more than 90 % of the trained text, if there are several files; else None."""
        shares = self.shares()
        dominant = (path for path, share in shares.items() if share > _MAX_SOURCE_SHARE)
        return next(dominant, None) if len(shares) > 1 else None
