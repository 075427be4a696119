"""The names of speakers in data of every format, and the role that each means."""

import re
from collections.abc import Mapping
from typing import Literal

from lora_chat.data.dialogue import Role

Speaker = Literal["system", "user", "assistant", "tool", "call"]
"""A role, or `call`: a message of the assistant whose content is its tool calls."""

_NAMES: dict[Speaker, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "input"),
    "assistant": ("assistant", "gpt", "model", "chatgpt", "bot", "chatbot", "ai", "bing", "bard", "output"),
    "tool": (
        *("tool", "function", "observation", "observations", "ipython", "environment"),
        *(f"{source}_{kind}" for source in ("tool", "function") for kind in ("response", "result", "output")),
        *("tool_responses", "tool_results", "function_results", "function_call_output"),
    ),
    "call": ("function_call", "tool_call", "function_calls", "tool_calls"),
}
SPEAKERS: Mapping[str, Speaker] = {name: speaker for speaker, names in _NAMES.items() for name in names}
"""The meaning of every known name, in lower case with underscores."""
_SEPARATORS = re.compile(r"[\s_-]+")
_MAX_NAME_CHARACTERS = 100


def find_speaker(name: object) -> Speaker | None:
    """Return the speaker that a name means, whatever its case and the blanks around it; None if it is unknown."""
    if not isinstance(name, str) or len(name) > _MAX_NAME_CHARACTERS:
        return None
    return SPEAKERS.get(_SEPARATORS.sub("_", name.strip().rstrip(":").strip().casefold()))


def role_of(speaker: Speaker) -> Role:
    """Return the role of a speaker in chat templates."""
    return "assistant" if speaker == "call" else speaker


def format_known_speakers() -> str:
    """Return the known names for a message, the names of chat templates first."""
    return ", ".join(dict.fromkeys(("system", "developer", "user", "assistant", "tool", *SPEAKERS)))
