"""A window on a JSON file: values are decoded one by one, with their lines; only a part of the file is in memory."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO

from lora_chat.data.reading.size_limits import MAX_ROW_BYTES
from lora_chat.system.strict_json import STRICT_DECODER

_BLANKS = re.compile(r"[ \t\r\n]*")
_WINDOW_BYTES = 1 << 20
_END_MARGIN_CHARACTERS = 64
"""Distance from the window's end, in characters, at which a fault may vanish when more is read."""

Element = tuple[int, object, int]
"""The line at which a value begins, the value, and its length in characters."""


class InvalidJsonError(ValueError):
    """The reason why the rest of a file cannot be read, with the line."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"{reason}; nothing after it can be read")
        self.line = line


class JsonWindow:
    """The part of a file that is in memory, with the current position."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._position = 0
        self._line = 1
        self._counted_to = 0
        self._size = _WINDOW_BYTES
        self._ended = False

    @property
    def line(self) -> int:
        """Return the line of the current position; each line feed is counted once."""
        self._line += self._text.count("\n", self._counted_to, self._position)
        self._counted_to = self._position
        return self._line

    def peek(self) -> str:
        """Return the next character that is not blank; empty at the end."""
        while True:
            self._position = _BLANKS.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._text):
                return self._text[self._position]
            if self._ended:
                return ""
            self._fill()

    def consume(self) -> str:
        """Return the next character that is not blank, and move past it."""
        character = self.peek()
        self._position += len(character)
        return character

    def iterate_list(self) -> Iterator[Element]:
        """Yield the elements of the list at the current position; raises InvalidJsonError unless it ends with `]`."""
        self.consume()  # the opening bracket
        if self.peek() == "]":
            self.consume()
            return
        while True:
            self.peek()  # skip blanks, so that `line` is the line of the element
            line = self.line
            value, size = self.decode_element()
            yield line, value, size
            separator = self.consume()
            if separator == "]":
                return
            if separator != ",":
                raise InvalidJsonError(self.line, "the list does not continue with a comma or end with ]")

    def iterate_keys(self) -> Iterator[str]:
        """Yield the keys of the object at the current position; the caller reads the value after each."""
        self.consume()  # the opening brace
        if self.peek() == "}":
            self.consume()
            return
        while True:
            self.peek()
            key, _ = self.decode_element()
            if not isinstance(key, str) or self.consume() != ":":
                raise InvalidJsonError(self.line, "is not valid JSON: a key and a colon are expected")
            yield key
            separator = self.consume()
            if separator == "}":
                return
            if separator != ",":
                raise InvalidJsonError(self.line, "the object does not continue with a comma or end with }")

    def decode_element(self) -> tuple[object, int]:
        """Return the value at the current position, and its length in characters."""
        while True:
            try:
                value, end = STRICT_DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                unfinished = error.pos > len(self._text) - _END_MARGIN_CHARACTERS or error.msg.startswith(
                    "Unterminated"
                )
                if self._ended or not unfinished:
                    self._position = max(self._position, min(error.pos, len(self._text)))
                    raise InvalidJsonError(self.line, f"is not valid JSON: {error.msg}") from error
            except (ValueError, RecursionError) as error:
                reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
                raise InvalidJsonError(self.line, reason) from error
            else:
                if end < len(self._text) or self._ended:
                    size = end - self._position
                    self._position = end
                    self._size = _WINDOW_BYTES
                    return value, size
            if len(self._text) - self._position > MAX_ROW_BYTES:
                raise InvalidJsonError(self.line, f"is longer than {MAX_ROW_BYTES >> 20} MiB")
            self._size *= 2  # doubled, so that a long element is decoded few times
            self._fill()

    def _fill(self) -> None:
        """Drop the text before the current position, and read more."""
        self._line, self._text, self._position, self._counted_to = self.line, self._text[self._position :], 0, 0
        data = self._file.read(self._size)
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            valid = error.object[: error.start].decode("utf-8", errors="ignore")
            line = self._line + self._text.count("\n") + valid.count("\n")
            raise InvalidJsonError(line, "is not UTF-8 text") from error
