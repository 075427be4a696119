"""For each reply of a dialogue: the prompt as it will be served, and the text that is trained right behind it.

Nothing here knows a family of models. A template is asked what it writes, and what it writes is compared; where it
cannot be told what inference will show, the dialogue is refused with the reason.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from lora_chat.data.encoding.chat_template import render_jobs, render_texts
from lora_chat.data.encoding.control_tokens import LITERAL_START
from lora_chat.data.encoding.template_renderer import RenderJob
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, Any]]

# Every family that thinks aloud writes its thoughts so, or between tokens of its own that its template knows.
THINK, END_THINK = "<think>", "</think>"
_OPEN_THINK_AT_END = re.compile(rf"{THINK}\s*\Z")
_CLOSED_THINK_AT_END = re.compile(rf"{END_THINK}\s*\Z")
_INLINE_REASONING = re.compile(rf"\s*{THINK}(.*?){END_THINK}\s*(.*)\Z", re.DOTALL)
_UNMARKED_THINK_END = re.compile(rf"(?<!{LITERAL_START}){END_THINK}")


@dataclass(frozen=True)
class Turn:
    """What inference shows before a reply, and what is to be written behind it, up to its stop token."""

    message_index: int
    """The reply's message, counted from 0."""
    prompt: str
    reply: str
    without_reasoning: bool = False
    """Whether the prompt opens thoughts and the dialogue has none, so that it learns to answer at once."""

    @property
    def text(self) -> str:
        """Both."""
        return self.prompt + self.reply


@dataclass(frozen=True)
class ReplyRequest:
    """A dialogue, as the template takes it, and the places of the replies that are to be trained."""

    messages: Messages
    tools: Any
    reply_indices: Sequence[int]

    @cached_property
    def jobs(self) -> list[RenderJob]:
        """Its prompts, its texts up to each reply, and the same without tools if there are any."""
        prompts = [self.messages[:place] for place in self.reply_indices]
        untils = [self.messages[: place + 1] for place in self.reply_indices]
        jobs = [RenderJob(prompts, True, self.tools), RenderJob(untils, False, self.tools)]
        return [*jobs, RenderJob(untils, False)] if self.tools else jobs


class TurnReader:
    """Reads turns out of what one tokenizer's chat template writes; stop tokens are texts here."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        stops = sorted((str(s) for s in tokenizer.convert_ids_to_tokens(list(stop_ids)) if s), key=len, reverse=True)
        self._stop_tokens = tuple(stops)
        self._stop_pattern = re.compile(f"(?<!{LITERAL_START})(?:{'|'.join(map(re.escape, stops))})")
        self._turn_openings: dict[bool, str] = {}

    def render(self, chats: Sequence[Messages], tools: Any, *, add_generation_prompt: bool) -> list[str]:
        """Chats as text."""
        return render_texts(self._tokenizer, chats, add_generation_prompt=add_generation_prompt, tools=tools)

    @cached_property
    def supports_reasoning(self) -> bool:
        """Whether the template has a place for thoughts: it writes them, or its prompt opens them."""
        ask, said = {"role": "user", "content": "q"}, "some thought"
        answer = {"role": "assistant", "content": "a", "reasoning_content": said, "thinking": said}
        try:
            (written,) = self.render([[ask, answer]], None, add_generation_prompt=False)
            (prompt,) = self.render([[ask]], None, add_generation_prompt=True)
        except DataError:
            return False
        return said in written or _OPEN_THINK_AT_END.search(prompt) is not None

    def extract_reasoning(self, message: dict[str, Any]) -> dict[str, Any]:
        """`<think>...</think>` at the head of a reply is reasoning, where the template has a place for it."""
        if message["role"] != "assistant" or message.get("reasoning_content") or THINK not in message["content"]:
            return message
        found = _INLINE_REASONING.match(message["content"])
        if not found or not self.supports_reasoning:
            return message
        thoughts = found[1].strip()
        return message | {"reasoning_content": thoughts, "thinking": thoughts, "content": found[2]}

    def parse_reply(self, prompt: str, reply: str) -> dict[str, Any]:
        """A generated reply as a message of the next prompt, its thoughts apart as they were in training."""
        opened = THINK if _OPEN_THINK_AT_END.search(prompt) else ""
        return self.extract_reasoning({"role": "assistant", "content": opened + reply})

    def read(self, asked: Sequence[ReplyRequest]) -> list[list[Turn] | DataError]:
        """The turns of each, or the reason why one of its replies cannot be trained.

        All are rendered together, because each call of a template in a process of its own costs a wait.
        """
        jobs = [job for one in asked for job in one.jobs]
        found = iter(render_jobs(self._tokenizer, jobs))
        return [self._parse_turns(one, list(islice(found, len(one.jobs)))) for one in asked]

    def _parse_turns(self, asked: ReplyRequest, rendered: Sequence[list[str] | DataError]) -> list[Turn] | DataError:
        texts = []
        for one in rendered:
            if isinstance(one, DataError):
                return one
            texts.append(one)
        prompts, untils, *without_tools = texts
        if untils in without_tools:
            return DataError("the chat template leaves out the tools")
        try:
            return [
                self._parse_turn(asked.messages, asked.tools, place, prompt, until)
                for place, prompt, until in zip(asked.reply_indices, prompts, untils, strict=True)
            ]
        except DataError as error:
            return error

    def _parse_turn(self, messages: Messages, tools: Any, message_index: int, prompt: str, until: str) -> Turn:
        message = messages[message_index]
        if until.startswith(prompt):
            said = until[len(prompt) :]
        else:
            said = self._reply_after_rewritten_history(messages, tools, message_index, prompt, until)
        if _OPEN_THINK_AT_END.search(prompt) and not _UNMARKED_THINK_END.search(said):
            # The prompt opens thoughts that the template does not close: the model has to.
            said = f"{message.get('reasoning_content', '')}\n{END_THINK}\n\n{said.lstrip()}"
        _check_rendered(message, said, message_index + 1)
        reply = self._cut_after_stop(said) or said + self._find_turn_opening(message, message_index + 1)
        opened = _OPEN_THINK_AT_END.search(prompt) is not None
        return Turn(message_index, prompt, reply, without_reasoning=opened and not message.get("reasoning_content"))

    def _reply_after_rewritten_history(
        self, messages: Messages, tools: Any, message_index: int, prompt: str, until: str
    ) -> str:
        """The reply where what is rendered with it does not begin as the prompt that is served."""
        cue = _OPEN_THINK_AT_END.sub("", prompt)
        if until.startswith(cue):
            return until[len(cue) :].removeprefix(THINK)
        # The reply changes what the template shows of the history; the prompt as served is what counts. The opening
        # of a reply is found by what the template writes in any case, whatever the reply.
        history, sample_reply = messages[:message_index], {"role": "assistant", "content": "\0"}
        (before,) = self.render([history], tools, add_generation_prompt=False)
        (other,) = self.render([[*history, sample_reply]], tools, add_generation_prompt=False)
        cue = cue[len(_common_prefix(cue, before)) :]
        head, found, opening = _common_prefix(until, other).rpartition(cue) if cue else ("", "", "")
        if found and not self._cut_after_stop(opening):
            return until[len(head) + len(cue) :]
        if _CLOSED_THINK_AT_END.search(prompt) and messages[message_index].get("reasoning_content"):
            raise DataError(
                f"the base answers without thoughts, and message {message_index + 1} has some; leave them out"
            )
        raise DataError(
            f"the prompt served before message {message_index + 1} is not what the chat template writes before it"
        )

    def _cut_after_stop(self, said: str) -> str:
        """To the first stop token, or to the last where text follows the first; empty without one.

        Some templates close a turn and then the text; generation ends at the first of the two.
        """
        found = list(self._stop_pattern.finditer(said))
        if not found:
            return ""
        behind = self._stop_pattern.sub("", said[found[0].end() :])
        return said[: found[-1 if behind.strip() else 0].end()]

    def _find_turn_opening(self, message: dict[str, Any], number: int) -> str:
        """Where no token closes a reply, the one that opens the next turn is its stop token (GLM ends replies so)."""
        calls = bool(message.get("tool_calls"))
        if calls not in self._turn_openings:
            call = {"type": "function", "function": {"name": "f", "arguments": {}}}
            reply = {"role": "assistant", "content": "x"} | ({"tool_calls": [call]} if calls else {})
            ask: dict[str, Any] = {"role": "user", "content": "x"}
            chat: list[dict[str, Any]] = [ask, reply]
            then = {"role": "tool", "name": "f", "content": "x"} if calls else ask
            until, beyond = self.render([chat, [*chat, then]], None, add_generation_prompt=False)
            behind = beyond[len(until) :] if beyond.startswith(until) else ""
            self._turn_openings[calls] = (
                next((s for s in self._stop_tokens if behind.startswith(s)), "") if until != beyond else ""
            )
        if not self._turn_openings[calls]:
            raise DataError(f"message {number} ends without a stop token; the model would never learn to stop")
        return self._turn_openings[calls]


def can_share_row(turns: Sequence[Turn]) -> bool:
    """Whether each reply stands in the later prompts just as it was trained."""
    return all(later.prompt.startswith(turn.text) for turn, later in pairwise(turns))


def _common_prefix(one: str, other: str) -> str:
    differ = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differ, min(len(one), len(other)))]


def _check_rendered(message: dict[str, Any], said: str, number: int) -> None:
    """Some templates pass over tools, reasoning, or text that they expect in parts, without a word."""
    for call in message.get("tool_calls", ()):
        if call["function"]["name"] not in said:
            raise DataError(f"the chat template leaves out the tool call in message {number}")
    for what, key in (("the text", "content"), ("the reasoning", "reasoning_content")):
        text = (message.get(key) or "").strip()
        if text not in said:
            if what == "the text" and END_THINK in text:
                what = f"what stands before {END_THINK} in the text"
            raise DataError(f"the chat template leaves out {what} of message {number}")
