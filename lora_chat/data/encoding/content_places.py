"""The places of a chat that carry meaning, and copies of the chat with other values there."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lora_chat.data.dialogue import ChatMessage

Path = tuple[str | int, ...]
"""Keys and indices from a message to a value in it."""
PlaceKind = Literal["text", "number", "key", "small"]
"""Text and numbers are replaced by others, keys are renamed, and small values (true, false, 0, empty) are removed."""

_ARGUMENTS = "arguments"
_WORD = re.compile(r"\w+")
_PIECE_CHARACTERS = 8
_REMOVED = object()


@dataclass(frozen=True)
class Place:
    """A value that the template should write."""

    message: int
    path: Path
    kind: PlaceKind
    value: Any = field(compare=False)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Return the ends of the parts of a text that are replaced: its beginning, its middle and its end."""
        text = str(self.value)
        words = [(m.start(), m.end()) for m in _WORD.finditer(text)] or [(0, len(text))]
        first, middle, last = words[0], words[len(words) // 2], words[-1]
        center = (middle[0] + middle[1]) // 2 if middle in (first, last) else middle[0]
        spans = [
            (first[0], min(first[0] + _PIECE_CHARACTERS, first[1])),
            (center, min(center + _PIECE_CHARACTERS, middle[1])),
            (max(last[1] - _PIECE_CHARACTERS, last[0]), last[1]),
        ]
        separate: list[tuple[int, int]] = []
        for begin, end in spans:
            if end > begin and (not separate or begin >= separate[-1][1]):
                separate.append((begin, end))
        return separate


def find_places(messages: Sequence[ChatMessage], end: int) -> Iterator[Place]:
    """Yield the places of the first `end` messages, in the order in which templates write them."""
    for index, message in enumerate(messages[:end]):
        if _has_own_name(messages, index):
            yield Place(index, ("name",), "text", message["name"])
        if message["content"].strip():
            yield Place(index, ("content",), "text", message["content"])
        for number, call in enumerate(message.get("tool_calls", ())):
            path: Path = ("tool_calls", number, "function")
            yield Place(index, (*path, "name"), "text", call["function"]["name"])
            yield from _find_values(index, (*path, _ARGUMENTS), call["function"][_ARGUMENTS])


def _find_values(index: int, path: Path, value: object) -> Iterator[Place]:
    """Yield the keys and values of the arguments of a call."""
    if isinstance(value, Mapping) and (value or path[-1] == _ARGUMENTS):
        for key, inner in value.items():
            yield Place(index, (*path, key), "key", key)
            yield from _find_values(index, (*path, key), inner)
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _find_values(index, (*path, number), inner)
    elif isinstance(value, str) and value.strip():
        yield Place(index, path, "text", value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and value:
        yield Place(index, path, "number", value)
    elif value is not None and not (isinstance(value, str) and value):
        yield Place(index, path, "small", value)


def _has_own_name(messages: Sequence[ChatMessage], index: int) -> bool:
    """Return whether a message has a name that neither its role, its text nor the call before it gives."""
    message = messages[index]
    name = str(message.get("name") or "").strip()
    if not name or name.casefold() == message["role"]:
        return False
    if message["role"] == "tool":
        called: set[str] = set()
        for earlier in reversed(messages[:index]):
            if earlier["role"] != "tool":
                called = {call["function"]["name"] for call in earlier.get("tool_calls", ())}
                break
        return name not in called
    return re.match(rf"[\W_]*{re.escape(name)}(?!\w)", message["content"], re.IGNORECASE) is None


def describe_shape(messages: Sequence[ChatMessage]) -> str:
    """Return a text that is equal for chats that differ only in the values of their places."""

    def outline(value: object) -> object:
        if isinstance(value, Mapping):
            return {str(number): outline(inner) for number, inner in enumerate(value.values())}
        if isinstance(value, list | tuple):
            return [outline(inner) for inner in value]
        if isinstance(value, str):
            text = value.strip()
            return "" if not text else text[0] if text[0] in "{[<" else "n" if text.isdecimal() else "t"
        return 1 if isinstance(value, int | float) and not isinstance(value, bool) and value else value

    parts = [[m["role"], {k: outline(v) for k, v in m.items() if k != "role"}] for m in messages]
    return json.dumps(parts, sort_keys=True)


class Replacements:
    """Other values for places of a chat; each is found again in the rendered text."""

    def __init__(self) -> None:
        self.marks: dict[Place, list[str]] = {}
        self._values: dict[tuple[int, Path], object] = {}
        self._keys: dict[tuple[int, Path], str] = {}

    def replace(self, spot: Place, only_piece: int | None = None) -> None:
        """Replace the value of a place, or one piece of its text."""
        at = (spot.message, spot.path)
        marks = self.marks.setdefault(spot, [])
        if spot.kind == "small":
            self._values[at] = _REMOVED
        elif spot.kind == "number":
            marks.append(str(8_100_000 + 7 * len(self._values)))
            self._values[at] = int(marks[-1])
        else:
            text = str(spot.value)
            for number, (begin, end) in reversed(list(enumerate(spot.pieces))):
                if only_piece in (None, number):
                    marks.append(f"zq{len(self._values) + len(self._keys)}x{number}qz")
                    text = text[:begin] + marks[-1] + text[end:]
            if spot.kind == "key":
                self._keys[at] = text
            else:
                self._values[at] = text

    def apply(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """Return copies of the messages with the other values."""
        changed = {index for index, _ in (*self._values, *self._keys)}
        return [
            self._copy(index, (), message) if index in changed else message for index, message in enumerate(messages)
        ]

    def _copy(self, index: int, path: Path, value: Any) -> Any:
        """Return a copy of a value."""
        if (index, path) in self._values:
            return self._values[index, path]
        if isinstance(value, Mapping):
            copies = {key: self._copy(index, (*path, key), inner) for key, inner in value.items()}
            return {self._keys.get((index, (*path, k)), k): v for k, v in copies.items() if v is not _REMOVED}
        if isinstance(value, list | tuple):
            copied = [self._copy(index, (*path, number), inner) for number, inner in enumerate(value)]
            return [inner for inner in copied if inner is not _REMOVED]
        return value
