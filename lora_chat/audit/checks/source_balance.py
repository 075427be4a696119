"""How much each file gives to what is learned."""

from lora_chat.data.dialogue import Dialogue

_MAX_SOURCE_SHARE = 0.9


class SourceBalance:
    """Bytes of trained replies by file."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}

    def add(self, dialogue: Dialogue) -> None:
        """Count the replies, in UTF-8, that carry loss."""
        size = 0
        for message in dialogue.messages:
            if message.role == "assistant" and message.trained:
                for text in (message.content, message.reasoning or "", *(c.arguments for c in message.tool_calls)):
                    size += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        self._bytes[dialogue.path] = self._bytes.get(dialogue.path, 0) + size

    def shares(self) -> dict[str, float]:
        """Share of all trained text by file, in the order the files were read."""
        total = sum(self._bytes.values()) or 1
        return {path: size / total for path, size in self._bytes.items()}

    def dominant_path(self) -> str | None:
        """The file among several that gives over 90 % of what is learned, if there is one."""
        shares = self.shares()
        return (
            next((path for path, share in shares.items() if share > _MAX_SOURCE_SHARE), None)
            if len(shares) > 1
            else None
        )
