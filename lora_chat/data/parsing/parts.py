"""Read the content of a message: text, numbers, or a list of parts with text, reasoning, calls and results."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.parsing.roles import Speaker
from lora_chat.data.parsing.values import plain_text

Part = Mapping[str, object]

TEXT_KEYS = ("text", "value", "content", "input_text", "output_text")
_REASONING_KEYS = ("thinking", "reasoning", "text", "value", "content")
MEDIA_KEYS = (
    *(f"{kind}{suffix}" for kind in ("image", "audio", "video", "file") for suffix in ("", "s", "_url", "_urls")),
    *("input_image", "input_audio", "input_video", "input_file", "document"),
    *("inlineData", "fileData", "inline_data", "file_data"),
)
"""Types of parts, and keys of rows, messages and parts, that name something a text model cannot read."""
IGNORED_KEYS = {"type", "cache_control", "annotations", "signature", "logprobs", "index"}
"""Keys of parts that say nothing about the text."""


@dataclass
class Content:
    """The content of a message, read part by part."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[object] = field(default_factory=list)
    results: list[dict[str, object]] = field(default_factory=list)
    """Keys of the messages with the results of tools."""

    @property
    def text(self) -> str | None:
        """Return the texts as one, or None."""
        return "".join(self.texts) if self.texts else None


def read_content(value: object, speaker: Speaker, where: str) -> Content:
    """Return the content of a message; raises InvalidDialogueError for anything that is not text."""
    if speaker == "tool" and isinstance(value, Mapping | list) and not _is_list_of_parts(value):
        return Content([_dump_result(value, where)])
    if isinstance(value, Mapping) and isinstance(value.get("type"), str):
        value = [value]
    if isinstance(value, list):
        return _read_parts(value, speaker, where)
    text = plain_text(value, f"{where}: `content`")
    if text is None:
        kind = {dict: "an object", type(None): "null"}.get(type(value), "no text")
        raise InvalidDialogueError(f"{where} has no text as `content`" + (f" but {kind}" if kind != "no text" else ""))
    return Content([text])


def _is_list_of_parts(value: object) -> bool:
    """Return whether a value is a list of parts with a known type; other lists are data that a tool returned."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(part, Mapping)
            and isinstance(kind := part.get("type"), str)
            and (kind in _READERS or kind in MEDIA_KEYS)
            for part in value
        )
    )


def _dump_result(value: object, where: str) -> str:
    """Return the result of a tool as JSON text, as `tojson` of chat templates writes it."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidDialogueError(f"{where} has a `content` that cannot be written as JSON: {error}") from None


def _read_parts(parts: list[object], speaker: Speaker, where: str) -> Content:
    """Return the content of a list of parts."""
    content = Content()
    if not parts:
        raise InvalidDialogueError(f"{where} has no text as `content` but an empty list")
    if len(parts) > 1 and all(isinstance(part, str) for part in parts):
        _check_pieces([str(part) for part in parts], where)
    for part in parts:
        if isinstance(part, Mapping):
            _read_part(part, content, where)
        elif (text := plain_text(part, f"{where}: a part of `content`")) is not None:
            content.texts.append(text)
        else:
            raise InvalidDialogueError(f"{where} has parts of `content` that are not text")
    if content.calls and speaker not in ("assistant", "call"):
        raise InvalidDialogueError(f"{where} has tool calls; only the assistant calls tools")
    if content.results and speaker not in ("user", "tool"):
        raise InvalidDialogueError(f"{where} has results of tools, which belong to the user or a tool")
    return content


def _check_pieces(texts: list[str], where: str) -> None:
    """Raise InvalidDialogueError for texts that may be alternatives instead of pieces of one text."""
    for first, second in pairwise(texts):
        if not first[-1:].isspace() and not second[:1].isspace():
            raise InvalidDialogueError(
                f"{where} has {len(texts)} texts as `content`, pieces of one text or alternatives; join them"
            )


def _read_part(part: Part, content: Content, where: str) -> None:
    """Add a part to the content; raises InvalidDialogueError for a part that is not text."""
    media = next((key for key in MEDIA_KEYS if part.get(key) not in (None, [], {}, "")), None)
    kind = part.get("type")
    if media is not None or kind in MEDIA_KEYS:
        raise InvalidDialogueError(
            f"{where} has a part with {str(media or kind)!a} in `content`; parts that are not text cannot be trained"
        )
    if kind is None:
        kind = next((name for name in ("functionCall", "functionResponse") if part.get(name) is not None), "text")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise InvalidDialogueError(f"{where} has parts of `content` that are not text: a part of the type {kind!a}")
    reader(part, content, where)


def _text_of(part: Part, keys: tuple[str, ...], where: str) -> str:
    """Return the one text of a part, which is under one of the keys."""
    texts = {key: part[key] for key in keys if part.get(key) is not None}
    values = {plain_text(text, f"{where}: a part of `content`") for text in texts.values()}
    if len(values) != 1 or None in values:
        names = " and ".join(f"`{key}`" for key in texts) or ascii(sorted(map(str, part))[:8])
        raise InvalidDialogueError(f"{where} has parts of `content` that are not text: a part with {names}")
    extra = sorted(
        key
        for key in part.keys() - texts.keys() - IGNORED_KEYS
        if key in _MEANINGFUL_KEYS and part[key] not in (None, [], {}, "")
    )
    if extra:
        raise InvalidDialogueError(f"{where} has a part of `content` with {extra[0]!a}, which would be lost")
    return str(values.pop())


_MEANINGFUL_KEYS = {"thinking", "reasoning", "refusal", "citations"}
"""Further keys of text parts that carry meaning."""


def _add_text(part: Part, content: Content, where: str) -> None:
    content.texts.append(_text_of(part, TEXT_KEYS, where))


def _add_reasoning(part: Part, content: Content, where: str) -> None:
    if content.texts and content.text:
        raise InvalidDialogueError(f"{where} has reasoning after text, which no chat template can write")
    if content.reasoning:
        raise InvalidDialogueError(f"{where} has several parts with reasoning; join them")
    content.reasoning.append(_text_of(part, _REASONING_KEYS, where))


def _add_call(part: Part, content: Content, where: str) -> None:
    nested = next((part[key] for key in ("functionCall", "tool_call", "function_call") if part.get(key)), None)
    call = nested if isinstance(nested, Mapping) else part
    content.calls.append({key: value for key, value in call.items() if key != "type"})


def _add_result(part: Part, content: Content, where: str) -> None:
    nested = part.get("functionResponse")
    result = nested if isinstance(nested, Mapping) else part
    text = next((result[key] for key in ("content", "output", "response", "result") if result.get(key) is not None), "")
    identity = next((result[key] for key in ("tool_use_id", "tool_call_id", "call_id") if result.get(key)), None)
    message = {"content": text, "tool_call_id": identity, "name": result.get("name")}
    content.results.append({key: value for key, value in message.items() if value is not None})


_READERS: dict[str, Callable[[Part, Content, str], None]] = {
    **dict.fromkeys(("text", "input_text", "output_text"), _add_text),
    **dict.fromkeys(("thinking", "reasoning", "reasoning_text"), _add_reasoning),
    **dict.fromkeys(("tool_use", "tool_call", "function_call", "functionCall"), _add_call),
    **dict.fromkeys(("tool_result", "tool_response", "function_call_output", "functionResponse"), _add_result),
}
"""The reader of each type of part."""
