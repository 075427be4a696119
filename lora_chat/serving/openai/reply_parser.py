"""The text of a reply -> its reasoning, its content and its tool calls, while it is generated.

The result is the same for every division of the text into pieces. Reasoning is separated as `TurnReader.parse_reply`
does for the next prompt, and calls are read as in `evaluation`. A call that cannot be read stays content.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from lora_chat.data.dialogue import ToolCall
from lora_chat.data.encoding.turns import END_THINK, THINK
from lora_chat.evaluation.scores.tool_calls import parse_calls

_TAG, _END_TAG = "<tool_call>", "</tool_call>"
_CALL = re.compile(rf"{_TAG}.*?{_END_TAG}", re.DOTALL)
_MARKS = ("[TOOL_CALLS]", "<|python_tag|>")
"""Texts that some bases write before calls without tags."""
_ARGUMENT_MARKS = ("{", "[ARGS]{")


@dataclass(frozen=True)
class ReplyForm:
    """The form of the replies to a prompt."""

    writes_reasoning: bool = False
    """Whether a reply may begin with reasoning in tags."""
    opens_reasoning: bool = False
    """Whether the prompt ends with the tag that opens reasoning."""
    strips_empty_block: bool = False
    """Whether an empty block of reasoning is removed although the template does not write reasoning."""
    tool_names: frozenset[str] | None = None
    """Names of the tools that may be called; None if a call is ordinary text."""


@dataclass(frozen=True)
class ReplyParts:
    """New text of a reply."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()


class ReplyParser:
    """The parser of one reply."""

    def __init__(self, form: ReplyForm) -> None:
        self._form = form
        self._reasoning_text, self._content_text = _StrippedText(), _StrippedText()
        self._in_reasoning = form.opens_reasoning
        self._in_content = not (form.opens_reasoning or form.writes_reasoning or form.strips_empty_block)
        self._buffer = ""
        """Text that was not assigned yet."""
        self._is_answer = form.tool_names is None
        """Whether the content is known to be something else than calls without tags."""
        self._in_calls = False
        self._length = 0
        self.reasoning_end = 0
        """Number of characters of the reply up to the end of its reasoning."""

    def feed(self, text: str) -> ReplyParts:
        """Return the new parts of a reply after a further piece of its text."""
        self._buffer += text
        self._length += len(text)
        if not (self._in_reasoning or self._in_content):
            self._read_beginning()
        reasoning = self._read_reasoning() if self._in_reasoning else ""
        return ReplyParts(reasoning, self._read_content() if self._in_content else "")

    def close(self) -> ReplyParts:
        """Return the rest of the reply and its calls."""
        rest, self._buffer = self._buffer, ""
        if self._in_reasoning:
            self.reasoning_end = self._length
            return ReplyParts(reasoning=self._reasoning_text.feed(rest))
        if self._form.tool_names is None or (self._is_answer and not self._in_calls):
            return ReplyParts(content=self._content_text.feed(rest))
        calls = _read_calls(rest, self._form.tool_names)
        if calls:
            rest = _CALL.sub("", rest) if self._in_calls or _TAG in rest else ""
        return ReplyParts(content=self._content_text.feed(rest), calls=calls)

    def _read_beginning(self) -> None:
        """Decide whether the reply begins with reasoning, if enough of it is known."""
        text = self._buffer.lstrip()
        if text != THINK and THINK.startswith(text):
            return
        if not text.startswith(THINK):
            self._in_content = True
        elif self._form.writes_reasoning:
            self._in_reasoning, self._buffer = True, text.removeprefix(THINK)
        else:
            rest = text.removeprefix(THINK).lstrip()
            if rest.startswith(END_THINK):
                self._in_content, self._buffer = True, rest.removeprefix(END_THINK)
            elif not END_THINK.startswith(rest):
                self._in_content = True

    def _read_reasoning(self) -> str:
        text, tag, rest = self._buffer.partition(END_THINK)
        if tag:
            self._in_reasoning, self._in_content, self._buffer = False, True, rest
            self.reasoning_end = self._length - len(rest)
        else:
            text, self._buffer = _split_open_tag(text, END_THINK)
        return self._reasoning_text.feed(text)

    def _read_content(self) -> str:
        names = self._form.tool_names
        if names is None:
            text, self._buffer = self._buffer, ""
            return self._content_text.feed(text)
        if not self._is_answer and not _may_be_calls(self._buffer.lstrip(), names):
            self._is_answer = True
        if self._in_calls or not self._is_answer:
            return ""
        begin = self._buffer.find(_TAG)
        if begin >= 0:
            self._in_calls = True
            text, self._buffer = self._buffer[:begin], self._buffer[begin:]
        else:
            text, self._buffer = _split_open_tag(self._buffer, _TAG)
        return self._content_text.feed(text)


class _StrippedText:
    """A text without the blanks at its ends."""

    def __init__(self) -> None:
        self._begun, self._blanks = False, ""

    def feed(self, text: str) -> str:
        """Return the new text without blanks that may be at its end."""
        text = self._blanks + (text if self._begun else text.lstrip())
        stripped = text.rstrip()
        self._begun, self._blanks = self._begun or bool(stripped), text[len(stripped) :]
        return stripped


def _read_calls(text: str, names: Collection[str]) -> tuple[ToolCall, ...]:
    """Return the calls of a reply; none if one cannot be read or calls something that was not offered."""
    calls = parse_calls(text) or ()
    return tuple(calls) if all(call.name in names for call in calls) else ()


def _split_open_tag(text: str, tag: str) -> tuple[str, str]:
    """Return a text without a tag that may begin at its end, and that beginning."""
    count = next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
    return text[: len(text) - count], text[len(text) - count :]


def _may_be_calls(text: str, names: Collection[str]) -> bool:
    """Return whether a reply that begins with this text can be calls without tags."""
    for mark in _MARKS:
        if mark.startswith(text):
            return True
        text = text.removeprefix(mark).lstrip()
    if not text:
        return True
    if text[0] in "{[":
        rest = text[1:].lstrip()
        return not rest or rest[0] == ('"' if text[0] == "{" else "{")
    return any(_share_beginning(text, name + mark) for name in names for mark in _ARGUMENT_MARKS)


def _share_beginning(first: str, second: str) -> bool:
    return first.startswith(second) or second.startswith(first)
