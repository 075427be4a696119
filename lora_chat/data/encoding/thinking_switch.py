"""The switch of a chat template between replies with and without thoughts, such as Qwen3's `enable_thinking`.

A reply with thoughts is trained after the prompt of the switch turned on, and one without after the prompt with the
switch turned off, so that both keep working. The default that training chose is written into the first line of the
template, where every program that renders it finds it.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_chat.data.dialogue import ChatMessage
from lora_chat.data.encoding.chat_template import render_jobs
from lora_chat.data.encoding.render_requests import RenderJob
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ThinkingMode = Literal["auto", "on", "off"]
ThinkingValue = Literal["on", "off"]


@dataclass(frozen=True)
class ThinkingSwitch:
    """A variable of chat templates that turns thoughts on and off."""

    variable: str
    on: bool | int | str = True
    off: bool | int | str = False

    def arguments(self, value: ThinkingValue) -> dict[str, object]:
        """Return the arguments of the template for a position of the switch."""
        return {self.variable: self.on if value == "on" else self.off}

    def line(self, value: ThinkingValue, *, forced: bool = False) -> str:
        """Return the line of Jinja that sets the switch; a caller's own argument wins unless `forced`."""
        literal = _jinja_literal(self.on if value == "on" else self.off)
        name = self.variable
        return f"{{%- set {name} = {literal if forced else f'{name} if {name} is defined else {literal}'} %}}\n"


THINKING_SWITCHES = (
    ThinkingSwitch("enable_thinking"),  # Qwen3, GLM-4.5, SmolLM3, Hunyuan, Gemma 4, Nemotron
    ThinkingSwitch("thinking"),  # DeepSeek V3.1, Granite 3.2, Kimi K2.5
    ThinkingSwitch("enable_reasoning"),
    ThinkingSwitch("thinking_mode", "enabled", "disabled"),  # MiniMax
    ThinkingSwitch("thinking_budget", -1, 0),  # Seed-OSS
    ThinkingSwitch("reasoning_effort", "high", "none"),  # Cohere, Mistral; gpt-oss has levels without `none`
)
"""Every known switch; the first that changes the text of a template is the one of that template."""
_SWITCHES_BY_VARIABLE = {switch.variable: switch for switch in THINKING_SWITCHES}
_QUESTION: ChatMessage = {"role": "user", "content": "q"}
_REPLY: ChatMessage = {
    "role": "assistant",
    "content": "a",
    "reasoning_content": "some thought",
    "thinking": "some thought",
}
_SAMPLES = (
    ([_QUESTION], True),
    ([{"role": "system", "content": "s"}, _QUESTION], True),
    ([_QUESTION, {"role": "assistant", "content": "a"}, _QUESTION], True),
    ([_QUESTION, _REPLY], False),
)
_UNKNOWN_VALUE = "zq7"
"""Value that no template knows; a template that writes it has levels with names and no switch."""
_INLINE_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_THINKING_ATTRIBUTE = "lora_chat_thinking"


@dataclass(frozen=True)
class Thinking:
    """How replies are trained under a template with a switch."""

    switch: ThinkingSwitch
    mode: ThinkingMode
    """`auto`: each reply decides by its thoughts."""
    default: ThinkingValue | None = None
    """Position for prompts of chats; None leaves the template's own, because both were trained."""

    def choose(self, message: ChatMessage) -> ThinkingValue:
        """Return the position of the switch for a reply."""
        if self.mode != "auto":
            return self.mode
        return "on" if has_thought(message) else "off"


def set_thinking(tokenizer: "PreTrainedTokenizerBase", thinking: Thinking | None) -> None:
    """Let every encoding with a tokenizer use the switch in this way; None leaves the template's own default."""
    setattr(tokenizer, _THINKING_ATTRIBUTE, thinking)


def read_thinking(tokenizer: "PreTrainedTokenizerBase") -> Thinking | None:
    """Return how encodings with a tokenizer use its switch; None if they do not."""
    thinking: Thinking | None = getattr(tokenizer, _THINKING_ATTRIBUTE, None)
    return thinking


def thinking_key(tokenizer: "PreTrainedTokenizerBase") -> list[str] | None:
    """Return what a tokenizer's switch changes in encoded dialogues."""
    thinking = read_thinking(tokenizer)
    return [thinking.switch.variable, thinking.mode] if thinking else None


def thinking_arguments(tokenizer: "PreTrainedTokenizerBase", reply: ChatMessage) -> dict[str, object]:
    """Return the arguments of the template for the prompt before a reply."""
    thinking = read_thinking(tokenizer)
    return thinking.switch.arguments(thinking.choose(reply)) if thinking else {}


def has_thought(message: ChatMessage) -> bool:
    """Return whether a reply has thoughts, in their own field or in tags at the beginning of its text."""
    if str(message.get("reasoning_content") or "").strip():
        return True
    match = _INLINE_THOUGHT.match(str(message.get("content") or ""))
    return match is not None and match[1].strip() != ""


def strip_empty_thought(message: ChatMessage) -> ChatMessage:
    """Return a reply without the empty block of thoughts at its beginning, which the template writes itself."""
    match = _INLINE_THOUGHT.match(str(message.get("content") or ""))
    if message.get("role") != "assistant" or match is None or match[1].strip():
        return message
    return message | {"content": message["content"][match.end() :]}


def find_switch(tokenizer: "PreTrainedTokenizerBase") -> ThinkingSwitch | None:
    """Return the switch of the chat template; None if it has none."""
    template = str(tokenizer.chat_template or "")
    candidates = [switch for switch in THINKING_SWITCHES if switch.variable in template]
    for switch in candidates:
        unknown = _render_samples(tokenizer, {switch.variable: _UNKNOWN_VALUE}) if isinstance(switch.on, str) else []
        if any(_UNKNOWN_VALUE in text for text in unknown if isinstance(text, str)):
            continue
        on, off = (_render_samples(tokenizer, switch.arguments(value)) for value in ("on", "off"))
        if any(a != b for a, b in zip(on, off, strict=True) if isinstance(a, str) and isinstance(b, str)):
            return switch
    return None


def list_other_variables(template: str) -> list[str]:
    """Return the variables of a template that look like a switch and are not one."""
    names = ("reasoning_effort", "thinking_budget", "thinking_mode", "low_effort")
    return [name for name in names if re.search(rf"\b{name}\b", template)]


def read_switch(variable: str) -> ThinkingSwitch | None:
    """Return the switch with a variable of this name."""
    return _SWITCHES_BY_VARIABLE.get(variable)


def set_default(
    tokenizer: "PreTrainedTokenizerBase", switch: ThinkingSwitch, value: ThinkingValue, *, forced: bool = False
) -> None:
    """Make a position of the switch the default of the chat template; raises DataError if the template resists."""
    template = remove_default(str(tokenizer.chat_template), switch)
    wanted = _render_samples(tokenizer, switch.arguments(value))
    tokenizer.chat_template = template
    if not forced and _render_samples(tokenizer, {}) == wanted:
        return
    tokenizer.chat_template = switch.line(value, forced=forced) + template
    if _render_samples(tokenizer, {}) != wanted:
        tokenizer.chat_template = template
        raise DataError(f"the chat template cannot have a default for {switch.variable}")


@contextmanager
def forced_default(tokenizer: "PreTrainedTokenizerBase") -> Iterator[None]:
    """Set the default of training even against the arguments of a caller, because llama.cpp always passes its own."""
    thinking, template = read_thinking(tokenizer), tokenizer.chat_template
    try:
        if thinking is not None and thinking.default is not None:
            set_default(tokenizer, thinking.switch, thinking.default, forced=True)
        yield
    finally:
        tokenizer.chat_template = template


def remove_default(template: str, switch: ThinkingSwitch) -> str:
    """Return a template without the line with which `set_default` begins it."""
    for value in ("on", "off"):
        for forced in (False, True):
            template = template.removeprefix(switch.line(value, forced=forced))
    return template


def iterate_variants(template: str) -> Iterator[str]:
    """Yield a template with every default that `set_default` can give it."""
    for switch in THINKING_SWITCHES:
        if switch.variable in template:
            yield remove_default(template, switch)
            yield from (switch.line(value) + remove_default(template, switch) for value in ("on", "off"))


def _render_samples(tokenizer: "PreTrainedTokenizerBase", arguments: Mapping[str, object]) -> list[str | None]:
    """Return the texts of the sample chats; None for one that the template refuses."""
    jobs = [RenderJob([chat], opens_reply, arguments=arguments) for chat, opens_reply in _SAMPLES]
    return [None if isinstance(texts, DataError) else texts[0] for texts in render_jobs(tokenizer, jobs)]


def _jinja_literal(value: bool | int | str) -> str:
    """Return a value as a literal of Jinja."""
    return str(value).lower() if isinstance(value, bool) else repr(value)
