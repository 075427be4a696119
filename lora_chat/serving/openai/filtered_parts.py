"""The filter for the parts of one reply: content, reasoning and tool arguments alike."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lora_chat.data.dialogue import ToolCall
from lora_chat.serving.openai.reply_parser import ReplyParts
from lora_chat.serving.reply_filter.clean_arguments import clean_arguments
from lora_chat.serving.reply_filter.filter_settings import FilterSettings
from lora_chat.serving.reply_filter.reply_filter import ReplyFilter
from lora_chat.serving.reply_filter.value_search import ReplyFindings


class PartFilter:
    """The filter of one reply; without settings it changes nothing."""

    def __init__(self, settings: FilterSettings | None) -> None:
        self._settings, self._findings = settings, ReplyFindings()
        self._reasoning = ReplyFilter(settings, self._findings) if settings else None
        self._content = ReplyFilter(settings, self._findings) if settings else None
        self._blocks_call = False

    @property
    def blocked(self) -> bool:
        """Return whether a value ended the reply."""
        return self._blocks_call or any(text and text.blocked for text in (self._reasoning, self._content))

    @property
    def counts(self) -> Mapping[str, int]:
        """Return the number of values by kind."""
        return self._findings.counts

    def feed(self, parts: ReplyParts, *, is_last: bool = False) -> ReplyParts:
        """Return the parts that can be sent; nothing after a value that ends the reply."""
        if self._settings is None or self._reasoning is None or self._content is None:
            return parts
        if self.blocked:
            return ReplyParts()
        # Content begins after the end of the reasoning, whose rest is known then.
        reasoning = _pass(self._reasoning, parts.reasoning, is_last=is_last or bool(parts.content or parts.calls))
        content = "" if self.blocked else _pass(self._content, parts.content, is_last=is_last)
        calls = () if self.blocked else tuple(self._clean_calls(parts.calls, self._settings))
        return ReplyParts(reasoning, content, calls)

    def _clean_calls(self, calls: Sequence[ToolCall], settings: FilterSettings) -> Iterator[ToolCall]:
        """Yield the calls before the first one that ends the reply."""
        for call in calls:
            text, self._blocks_call = clean_arguments(call.arguments, settings, self._findings)
            if self._blocks_call:
                return
            yield replace(call, arguments=text)


def _pass(reply_filter: ReplyFilter, text: str, *, is_last: bool) -> str:
    return reply_filter.feed(text) + (reply_filter.close() if is_last else "")
