"""Fields that rows of several formats share: the system message, the tools, and one text under one of several keys."""

from collections.abc import Mapping, Sequence

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.keys import is_filled
from lora_chat.data.parsing.values import parse_json_text

SYSTEM_KEYS = ("system", "system_prompt", "system_message", "system_instruction", "system_instructions")
TOOL_KEYS = ("tools", "functions")
SHARED_KEYS = frozenset({*SYSTEM_KEYS, *TOOL_KEYS, "turns", "loss"})
"""Keys that rows of every format with dialogues may have."""


def read_field(row: Mapping[str, object], keys: Sequence[str]) -> object:
    """Return the value under one of several keys; raises InvalidDialogueError if two of them differ."""
    filled = [key for key in keys if is_filled(row.get(key))]
    if not filled:
        return next((row[key] for key in keys if row.get(key) is not None), None)
    for other in filled[1:]:
        if row[other] != row[filled[0]]:
            raise InvalidDialogueError(
                f"has `{filled[0]}` and `{other}`, which contradict each other; keep one of them"
            )
    return row[filled[0]]


def read_tool_field(row: Mapping[str, object]) -> object:
    """Return the function descriptions of a row: `tools`, or `functions` of OpenAI's earlier form."""
    tools, functions = row.get("tools"), row.get("functions")
    if not is_filled(functions):
        return tools
    if isinstance(functions, str):
        functions = parse_json_text(functions, "`functions`")
    if not isinstance(functions, list) or not all(isinstance(function, Mapping) for function in functions):
        raise InvalidDialogueError("`functions` must be a list of function descriptions")
    wrapped = [
        function if "function" in function else {"type": "function", "function": function} for function in functions
    ]
    if is_filled(tools) and tools != wrapped:
        raise InvalidDialogueError("has `tools` and `functions`, which contradict each other; keep one of them")
    return wrapped


def shared_fields(row: Mapping[str, object]) -> dict[str, object]:
    """Return the system message, the tools and the choice of loss of a row."""
    choices = {key: row.get(key) for key in ("turns", "loss")}
    return {"system": read_field(row, SYSTEM_KEYS), "tools": read_tool_field(row), **choices}
