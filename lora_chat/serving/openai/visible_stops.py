"""Stop texts of a filtered reply, searched in the text that the client receives.

A search in the unfiltered text would tell a client whether a value that the filter replaced contains a stop text.
"""

from collections.abc import Sequence

from lora_chat.serving.openai.reply_parser import ReplyParts
from lora_chat.serving.openai.text_stream import StopSearch


class VisibleStops:
    """The search for stop texts in the reasoning and in the content of one reply."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._reasoning, self._content = StopSearch(stops), StopSearch(stops)

    @property
    def stopped(self) -> bool:
        """Return whether a stop text was found, so that the reply has ended."""
        return self._reasoning.found or self._content.found

    def feed(self, parts: ReplyParts, *, is_last: bool = False) -> ReplyParts:
        """Return the parts before a stop text, without text that may begin one unless it is the last."""
        reasoning = self._reasoning.feed(parts.reasoning)
        if is_last or parts.content or parts.calls:
            reasoning += self._reasoning.close()
        if self._reasoning.found:
            return ReplyParts(reasoning)
        content = self._content.feed(parts.content) + (self._content.close() if is_last else "")
        return ReplyParts(reasoning, content, () if self.stopped else parts.calls)
