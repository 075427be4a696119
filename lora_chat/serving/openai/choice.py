"""One reply while it is generated: tokens in, parts of an answer out."""

from dataclasses import dataclass

from lora_chat.data.dialogue import ToolCall
from lora_chat.inference.continuous.request import FinishReason, GeneratedToken
from lora_chat.serving.openai.filtered_parts import PartFilter
from lora_chat.serving.openai.model_traits import traits_of
from lora_chat.serving.openai.reply_parser import ReplyParser, ReplyParts
from lora_chat.serving.openai.reply_task import ReplyTask
from lora_chat.serving.openai.text_stream import TextStream
from lora_chat.serving.openai.visible_stops import VisibleStops

FINISH_REASONS: dict[FinishReason, str] = {"stop": "stop", "length": "length"}
"""Reasons of the generator that are ordinary ends of a reply, in the words of OpenAI's API."""
CUT_REASONS: dict[FinishReason, str] = {"deadline": "length", "cancelled": "length"}
"""Reasons that end a reply that has begun: its time is over, or the server stops. Without a token it is an error."""


@dataclass(frozen=True)
class ChoiceDelta:
    """New parts of one reply."""

    index: int
    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    tokens: tuple[tuple[GeneratedToken, int], ...] = ()
    """Tokens with log-probabilities, each with the number of characters before it."""
    finish: str | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether nothing is to be sent."""
        return not (self.reasoning or self.content or self.calls or self.finish)


class Choice:
    """One reply of a task."""

    def __init__(self, index: int, task: ReplyTask) -> None:
        prompt = task.prompts[index // task.count] if task.form is None else ()
        self._index, self._keeps_tokens = index, task.top_logprobs is not None
        raw_stops, visible_stops = ((), task.stops) if task.reply_filter else (task.stops, ())
        self._stream = TextStream(task.model.tokenizer, traits_of(task.model).make_decoder(prompt), raw_stops)
        self._parser = ReplyParser(task.form) if task.form is not None else None
        self.filter, self._visible_stops = PartFilter(task.reply_filter), VisibleStops(visible_stops)
        self._tokens: list[tuple[GeneratedToken, int]] = []
        self.finish: str | None = None
        """Reason of the end; None while the reply is generated."""

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of the reply."""
        return len(self._stream.starts)

    @property
    def num_reasoning_tokens(self) -> int:
        """Return the number of tokens of the reasoning, with its tags."""
        end = self._parser.reasoning_end if self._parser else 0
        return sum(start < end for start in self._stream.starts)

    def feed(self, item: GeneratedToken) -> ChoiceDelta:
        """Return the new parts after a further token; a stop text ends the reply."""
        text = self._stream.feed(item.token)
        if self._keeps_tokens:
            self._tokens.append((item, self._stream.starts[-1]))
        if self._stream.stopped:
            return self._end(text, "stop")
        parts = self._clean(self._parser.feed(text) if self._parser else ReplyParts(content=text))
        self.finish = self._read_early_end()
        return self._make_delta(parts)

    def end(self, reason: str) -> ChoiceDelta:
        """Return the last parts of a reply that ended."""
        text = self._stream.close()
        return self._end(text, "stop" if self._stream.stopped else reason)

    def _end(self, text: str, reason: str) -> ChoiceDelta:
        first, last = ReplyParts(content=text), ReplyParts()
        if self._parser:
            first, last = self._parser.feed(text), self._parser.close()
        parts = ReplyParts(first.reasoning + last.reasoning, first.content + last.content, last.calls)
        parts = self._clean(parts, is_last=True)
        self.finish = self._read_early_end() or ("tool_calls" if parts.calls and reason == "stop" else reason)
        if self._stream.stopped:  # tokens after the stop text are not a part of the reply
            self._tokens = [(item, start) for item, start in self._tokens if start < self._stream.length]
        return self._make_delta(parts)

    def _clean(self, parts: ReplyParts, *, is_last: bool = False) -> ReplyParts:
        """Return the parts that the client may see."""
        parts = self.filter.feed(parts, is_last=is_last)
        return self._visible_stops.feed(parts, is_last=is_last or self.filter.blocked)

    def _read_early_end(self) -> str | None:
        """Return why the filtered text has ended the reply; None if it has not."""
        if self._visible_stops.stopped:
            return "stop"
        return "content_filter" if self.filter.blocked else None

    def _make_delta(self, parts: ReplyParts) -> ChoiceDelta:
        """Return parts with all tokens that were not sent yet, if anything is to be sent."""
        delta = ChoiceDelta(self._index, parts.reasoning, parts.content, parts.calls, finish=self.finish)
        if delta.is_empty:
            return delta
        tokens, self._tokens = tuple(self._tokens), []
        return ChoiceDelta(self._index, parts.reasoning, parts.content, parts.calls, tokens, self.finish)
