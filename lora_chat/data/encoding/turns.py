"""Split a rendered dialogue into turns: the prompt that inference will show, and the reply that is trained after it.

Nothing here depends on a model family. The template is rendered several times and the texts are compared. A dialogue
whose prompt at inference cannot be determined is refused with the reason.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from lora_chat.data.dialogue import ChatMessage, ToolDescription
from lora_chat.data.encoding.bundled_templates import find_tool_template
from lora_chat.data.encoding.chat_template import render_jobs, render_texts
from lora_chat.data.encoding.control_tokens import LITERAL_START
from lora_chat.data.encoding.render_requests import Messages, RenderJob
from lora_chat.data.encoding.thinking_switch import has_thought, read_thinking, strip_empty_thought, thinking_arguments
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[ToolDescription] | None

# Most reasoning models use these two tags. The others have tokens that their template writes.
THINK, END_THINK = "<think>", "</think>"
_OPEN_THINK_AT_END = re.compile(rf"{THINK}\s*\Z")
_CLOSED_THINK_AT_END = re.compile(rf"{END_THINK}\s*\Z")
_INLINE_REASONING = re.compile(rf"\s*{THINK}(.*?){END_THINK}\s*(.*)\Z", re.DOTALL)
_EMPTY_BLOCK = re.compile(rf"\s*{THINK}\s*{END_THINK}\s*")
_CLOSING_BLOCK = re.compile(rf"\s*{END_THINK}\s*")
_UNMARKED_THINK_END = re.compile(rf"(?<!{LITERAL_START}){END_THINK}")


def opens_reasoning(prompt: str) -> bool:
    """Return whether a prompt ends with the tag that opens reasoning."""
    return _OPEN_THINK_AT_END.search(prompt) is not None


@dataclass(frozen=True)
class Turn:
    """A reply up to its stop token, and the prompt that inference shows before it."""

    message_index: int
    """Index of the reply among the messages, from 0."""
    prompt: str
    reply: str
    without_reasoning: bool = False
    """Whether the prompt opens reasoning and the reply has none, so that the model learns to skip reasoning."""
    has_thought: bool = False

    @property
    def text(self) -> str:
        """Return the prompt and the reply as one text."""
        return self.prompt + self.reply


@dataclass(frozen=True)
class ReplyRequest:
    """A dialogue in the form that templates read, and the indices of its trained replies."""

    messages: Messages
    tools: Tools
    reply_indices: Sequence[int]
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Further variables of the template, such as the position of its switch for thoughts."""

    @cached_property
    def jobs(self) -> list[RenderJob]:
        """Return the jobs that render its prompts, its chats up to each reply, and the same chats without tools."""
        prompts = [self.messages[:index] for index in self.reply_indices if index]
        chats = [self.messages[: index + 1] for index in self.reply_indices]
        jobs = [
            RenderJob(prompts, True, self.tools, self.arguments),
            RenderJob(chats, False, self.tools, self.arguments),
        ]
        return [*jobs, RenderJob(chats, False, arguments=self.arguments)] if self.tools else jobs


class TurnReader:
    """Reader of turns from the texts of one chat template; stop tokens are texts here."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        stops = sorted((str(s) for s in tokenizer.convert_ids_to_tokens(list(stop_ids)) if s), key=len, reverse=True)
        self._stop_tokens = tuple(stops)
        self._stop_pattern = re.compile(f"(?<!{LITERAL_START})(?:{'|'.join(map(re.escape, stops))})")
        self._turn_openings: dict[bool, str] = {}
        self._thinking = read_thinking(tokenizer)

    def render(
        self,
        chats: Sequence[Messages],
        tools: Tools,
        *,
        add_generation_prompt: bool,
        arguments: Mapping[str, object] | None = None,
    ) -> list[str]:
        """Return chats as text."""
        return render_texts(
            self._tokenizer, chats, add_generation_prompt=add_generation_prompt, tools=tools, arguments=arguments
        )

    @cached_property
    def supports_reasoning(self) -> bool:
        """Return whether the template writes reasoning, or opens it in the prompt."""
        question, reasoning = {"role": "user", "content": "q"}, "some thought"
        answer = {"role": "assistant", "content": "a", "reasoning_content": reasoning, "thinking": reasoning}
        arguments = self._thinking.switch.arguments("on") if self._thinking else {}
        try:
            (chat_text,) = self.render([[question, answer]], None, add_generation_prompt=False, arguments=arguments)
            (prompt,) = self.render([[question]], None, add_generation_prompt=True, arguments=arguments)
        except DataError:
            return False
        return reasoning in chat_text or opens_reasoning(prompt)

    def extract_reasoning(self, message: ChatMessage) -> ChatMessage:
        """Return the message with its leading `<think>...</think>` as reasoning, if the template supports that."""
        if message["role"] != "assistant" or message.get("reasoning_content") or THINK not in message["content"]:
            return message
        match = _INLINE_REASONING.match(message["content"])
        if not match or not self.supports_reasoning:
            return strip_empty_thought(message) if self._thinking else message
        reasoning = match[1].strip()
        return message | {"reasoning_content": reasoning, "thinking": reasoning, "content": match[2]}

    def parse_reply(self, prompt: str, reply: str) -> ChatMessage:
        """Return a generated reply as a message for the next prompt, with its reasoning separate, as in training."""
        opened = THINK if opens_reasoning(prompt) else ""
        return self.extract_reasoning({"role": "assistant", "content": opened + reply})

    def read(self, requests: Sequence[ReplyRequest]) -> list[list[Turn] | DataError]:
        """Return the turns of each request, or the reason why one of its replies cannot be trained.

        All requests are rendered together, because each call of the template worker waits for an answer.
        """
        parts = [self._split_by_thinking(request) for request in requests]
        jobs = [job for request_parts in parts for part in request_parts for job in part.jobs]
        rendered = iter(render_jobs(self._tokenizer, jobs))
        return [
            _join_parts([self._parse_turns(part, list(islice(rendered, len(part.jobs)))) for part in request_parts])
            for request_parts in parts
        ]

    def choose_arguments(self, reply: ChatMessage) -> dict[str, object]:
        """Return the further variables of the template for a reply."""
        return thinking_arguments(self._tokenizer, reply)

    @cached_property
    def _tools_hint(self) -> str:
        """Return the offer of a bundled template that writes tools."""
        return f"; data.template={find_tool_template(self._tokenizer.get_vocab().keys()).name} writes them"

    def _split_by_thinking(self, request: ReplyRequest) -> list[ReplyRequest]:
        """Return a request for each position of the switch for thoughts that its replies need."""
        if self._thinking is None:
            return [request]
        values = [self._thinking.choose(request.messages[index]) for index in request.reply_indices]
        return [
            replace(
                request,
                reply_indices=[i for i, chosen in zip(request.reply_indices, values, strict=True) if chosen == value],
                arguments=self._thinking.switch.arguments(value),
            )
            for value in dict.fromkeys(values)
        ]

    def _parse_turns(self, request: ReplyRequest, rendered: Sequence[list[str] | DataError]) -> list[Turn] | DataError:
        texts = []
        for job_texts in rendered:
            if isinstance(job_texts, DataError):
                return job_texts
            texts.append(job_texts)
        prompts, chats, *chats_without_tools = texts
        if chats in chats_without_tools:
            return DataError(f"the chat template leaves out the tools{self._tools_hint}")
        try:
            if request.reply_indices[0] == 0:
                prompts = [self._find_opening(request.tools), *prompts]
            return [
                self._parse_turn(request, index, prompt, chat)
                for index, prompt, chat in zip(request.reply_indices, prompts, chats, strict=True)
            ]
        except DataError as error:
            return error

    def _parse_turn(self, request: ReplyRequest, message_index: int, prompt: str, chat: str) -> Turn:
        """Return the turn whose reply ends the rendered `chat`."""
        message = request.messages[message_index]
        if chat.startswith(prompt):
            tail = chat[len(prompt) :]
        else:
            tail = self._reply_after_rewritten_history(request, message_index, prompt, chat)
        if _OPEN_THINK_AT_END.search(prompt) and not _UNMARKED_THINK_END.search(tail):
            # The prompt opens reasoning and the template does not close it, so the reply must.
            tail = f"{message.get('reasoning_content', '')}\n{END_THINK}\n\n{tail.lstrip()}"
        _check_rendered(message, tail, message_index + 1, self._tools_hint)
        reply = self._cut_after_stop(tail) or tail + self._find_turn_opening(message, message_index + 1)
        opened = opens_reasoning(prompt)
        if self._thinking is not None and not has_thought(message):
            # The empty block that the template inserts carries no loss, so that the model keeps its thoughts.
            block = (_CLOSING_BLOCK if opened else _EMPTY_BLOCK).match(reply)
            inserted = block[0] if block else ""
            prompt, reply = prompt + inserted, reply[len(inserted) :]
        return Turn(
            message_index,
            prompt,
            reply,
            without_reasoning=opened and not message.get("reasoning_content"),
            has_thought=has_thought(message),
        )

    def _reply_after_rewritten_history(self, request: ReplyRequest, message_index: int, prompt: str, chat: str) -> str:
        """Return the reply of a chat whose rendered text does not begin with the prompt."""
        messages, tools, arguments = request.messages, request.tools, request.arguments
        cue = _OPEN_THINK_AT_END.sub("", prompt)
        if chat.startswith(cue):
            return chat[len(cue) :].removeprefix(THINK)
        # The reply changes how the template renders the history, but inference shows the prompt. The text that opens
        # a reply is the common beginning of two chats that differ only in the reply.
        history, sample_reply = messages[:message_index], {"role": "assistant", "content": "\0"}
        (history_text,) = self.render([history], tools, add_generation_prompt=False, arguments=arguments)
        (sample_chat,) = self.render(
            [[*history, sample_reply]], tools, add_generation_prompt=False, arguments=arguments
        )
        cue = cue[len(_common_prefix(cue, history_text)) :]
        head, matched, opening = _common_prefix(chat, sample_chat).rpartition(cue) if cue else ("", "", "")
        if matched and not self._cut_after_stop(opening):
            return chat[len(head) + len(cue) :]
        if _CLOSED_THINK_AT_END.search(prompt) and messages[message_index].get("reasoning_content"):
            raise DataError(
                f"the base answers without reasoning, and message {message_index + 1} has reasoning; remove it"
                + (", or use data.thinking: auto" if self._thinking else "")
            )
        raise DataError(
            f"the prompt at inference before message {message_index + 1} differs from the text of the chat template"
        )

    def _find_opening(self, tools: Tools) -> str:
        """Return the text before a reply that begins a dialogue.

        No inference shows a prompt without messages, and many templates cannot write one. So it is the text before the
        first reply of the chat, which must end as every prompt does.
        """
        question: ChatMessage = {"role": "user", "content": "q"}
        samples: list[list[ChatMessage]] = [[{"role": "assistant", "content": content}] for content in ("x1", "y2")]
        first, second, history = self.render([*samples, [question]], tools, add_generation_prompt=False)
        (prompt,) = self.render([[question]], tools, add_generation_prompt=True)
        cue = prompt[len(_common_prefix(prompt, history)) :]
        bare_cue = _OPEN_THINK_AT_END.sub("", cue)
        head, matched, rest = _common_prefix(first, second).rpartition(bare_cue) if bare_cue else ("", "", "")
        if not matched or self._cut_after_stop(rest):
            raise DataError("the chat template writes no prompt before message 1, which is a reply")
        return head + cue

    def _cut_after_stop(self, text: str) -> str:
        """Return the text up to its first stop token, or its last one if text follows the first; empty without one.

        Some templates close a turn and then the chat; generation ends at the first of the two.
        """
        stops = list(self._stop_pattern.finditer(text))
        if not stops:
            return ""
        rest = self._stop_pattern.sub("", text[stops[0].end() :])
        return text[: stops[-1 if rest.strip() else 0].end()]

    def _find_turn_opening(self, message: ChatMessage, number: int) -> str:
        """Return the stop token that opens the next turn, for templates that do not close replies (such as GLM's)."""
        calls = bool(message.get("tool_calls"))
        if calls not in self._turn_openings:
            call = {"type": "function", "function": {"name": "f", "arguments": {}}}
            reply = {"role": "assistant", "content": "x"} | ({"tool_calls": [call]} if calls else {})
            question: ChatMessage = {"role": "user", "content": "x"}
            chat: list[ChatMessage] = [question, reply]
            next_message = {"role": "tool", "name": "f", "content": "x"} if calls else question
            text, longer = self.render([chat, [*chat, next_message]], None, add_generation_prompt=False)
            opening = longer[len(text) :] if longer.startswith(text) else ""
            self._turn_openings[calls] = (
                next((s for s in self._stop_tokens if opening.startswith(s)), "") if text != longer else ""
            )
        if not self._turn_openings[calls]:
            raise DataError(f"message {number} ends without a stop token; the model would never learn to stop")
        return self._turn_openings[calls]


def _join_parts(parts: Sequence[list[Turn] | DataError]) -> list[Turn] | DataError:
    """Return the turns of all parts of a request in order, or the first reason why one has none."""
    turns: list[Turn] = []
    for part in parts:
        if isinstance(part, DataError):
            return part
        turns += part
    return sorted(turns, key=lambda turn: turn.message_index)


def can_share_row(turns: Sequence[Turn]) -> bool:
    """Return whether each later prompt begins with the earlier turn exactly as trained."""
    return all(later.prompt.startswith(turn.text) for turn, later in pairwise(turns))


def common_prefix_length(first: str, second: str) -> int:
    """Return the number of characters with which both texts begin."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_prefix(first: str, second: str) -> str:
    return first[: common_prefix_length(first, second)]


def _check_rendered(message: ChatMessage, rendered: str, number: int, tools_hint: str = "") -> None:
    """Raise DataError if the template silently left out a tool call, the reasoning or the text of a message."""
    for call in message.get("tool_calls", ()):
        if call["function"]["name"] not in rendered:
            raise DataError(f"the chat template leaves out the tool call in message {number}{tools_hint}")
    for part, key in (("the text", "content"), ("the reasoning", "reasoning_content")):
        text = (message.get(key) or "").strip()
        if text not in rendered:
            if part == "the text" and END_THINK in text:
                part = f"everything before {END_THINK} in the text"
            raise DataError(f"the chat template leaves out {part} of message {number}")
