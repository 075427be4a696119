"""The only door to the terminal: whatever is printed goes through here and is filtered.

File names, hub answers, recipes, dialogues, model replies and texts of exceptions come from strangers. None of them may
move the cursor, set a title, write to the clipboard, or turn the direction of what stands beside it.
"""

import json
import logging
import math
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, cast

from lora_chat.system.sanitize import TextFilter, sanitize_line, sanitize_text


def format_bytes(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def display_path(path: Path) -> str:
    """A path as short as it can be typed from here, on one line whatever its name holds."""
    try:
        return sanitize_line(str(path.relative_to(Path.cwd())))
    except ValueError:
        return sanitize_line(str(path))


def quote_path(path: Path) -> str:
    """Return a path as it is typed in a command; a name that strangers chose runs nothing when it is pasted."""
    return shlex.quote(display_path(path))


_GREEN, _PLAIN = "\033[1;32m", "\033[0m"
_MAX_ERROR_CHARACTERS = 10_000
"""Characters of a message that are shown; longer ones lose their middle."""
_CURSOR_MOVES = re.compile(r"((?:[\r\n]|\033\[A)*)(.*?)(\r*)\Z", re.DOTALL)
"""What progress bars of libraries write: they return to the beginning of a line, or go up, before and after a text."""


@dataclass(frozen=True)
class Highlight:
    """Text that is printed in green, or between `[[` and `]]` where there are no colours."""

    text: str


ResultPart = str | Highlight


_live_display: Callable[[str], None] | None = None
"""Prints a message above the live line that is on the screen, if there is one."""


def print_message(text: str) -> None:
    """Print a line on stderr for the person at the keyboard, because stdout is for results."""
    if _live_display:
        _live_display(text)
    else:
        _write(sys.stderr, sanitize_text(text) + "\n")


def show_messages_with(live_display: Callable[[str], None] | None) -> None:
    """Print the messages from now on with a live display, which keeps its line below them, or plainly (None)."""
    global _live_display
    _live_display = live_display


class MessageHandler(logging.Handler):
    """Logging handler that prints the package's messages for the user, without levels, names or times."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record."""
        print_message(record.getMessage())


def print_logged_messages() -> None:
    """Print what the package logs from now on. A second call changes nothing."""
    package_logger = logging.getLogger("lora_chat")
    package_logger.setLevel(logging.INFO)
    package_logger.propagate = False  # a library that configures the root logger would print each message again
    if not any(isinstance(handler, MessageHandler) for handler in package_logger.handlers):
        package_logger.addHandler(MessageHandler())


def print_error(text: str, label: str = "Error: ") -> None:
    """Print an error on stderr; one without end, such as one that quotes a long name, loses its middle."""
    if len(text) > _MAX_ERROR_CHARACTERS:
        left, right = text[: _MAX_ERROR_CHARACTERS // 2], text[-_MAX_ERROR_CHARACTERS // 2 :]
        text = f"{left} ... ({len(text) - _MAX_ERROR_CHARACTERS:,} characters left out) ... {right}"
    print_message(label + text)


def print_result(text: str | Iterable[ResultPart], end: str = "\n") -> None:
    """Print a result on stdout; only a Highlight has colours."""
    parts = [text] if isinstance(text, str) else text
    _write(sys.stdout, "".join(map(_format_part, parts)) + end)


def print_json(value: Any, indent: int | None = None) -> None:
    """Print JSON on stdout, in ASCII: no string in it can act on a terminal. NaN and infinities become null."""
    _write(sys.stdout, json.dumps(_replace_nonfinite(value), ensure_ascii=True, allow_nan=False, indent=indent) + "\n")


class ReplyPrinter:
    """Prints one model reply on stdout as its pieces come; line feeds and tabs stay."""

    def __init__(self) -> None:
        self._filter = TextFilter()

    def write(self, piece: str) -> None:
        """Print the next piece at once; an escape sequence split over two pieces does not get through either."""
        _write(sys.stdout, self._filter.feed(piece))

    def close(self) -> None:
        """End the reply's last line."""
        _write(sys.stdout, "\n")


def filter_output() -> None:
    """Filter what libraries, warnings, loggers and uncaught exceptions print in this process from now on."""
    sys.stdout, sys.stderr = _filter_stream(sys.stdout), _filter_stream(sys.stderr)
    sys.excepthook = _print_exception
    threading.excepthook = _print_thread_exception


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is there and leads to a terminal."""
    return stream is not None and stream.isatty()


def unfiltered_stderr() -> TextIO | None:
    """Return stderr without its filter, for a live display whose texts are filtered already."""
    return _unfiltered(sys.stderr)


class _FilteredStream:
    """A text stream that writes visible text, whoever writes to it."""

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        before, said, behind = cast("re.Match[str]", _CURSOR_MOVES.match(text)).groups()
        _write(self.raw, before, sanitize_text(said), behind)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def _filter_stream(stream: TextIO | None) -> TextIO:
    if stream is None or isinstance(stream, _FilteredStream):  # a program without a console has no streams
        return cast("TextIO", stream)
    return cast("TextIO", _FilteredStream(stream))


def _unfiltered(stream: TextIO) -> TextIO | None:
    return stream.raw if isinstance(stream, _FilteredStream) else stream


def _write(stream: TextIO, *filtered: str) -> None:
    raw = _unfiltered(stream)
    if raw is None:
        return
    text = "".join(filtered)
    encoding = getattr(raw, "encoding", None) or "utf-8"
    if encoding.lower() not in ("utf-8", "utf8"):  # a console that cannot show a letter shows its escape
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    raw.write(text)
    raw.flush()


def _format_part(part: ResultPart) -> str:
    if isinstance(part, str):
        return sanitize_text(part)
    text = sanitize_text(part.text)
    return f"{_GREEN}{text}{_PLAIN}" if _has_colours() else f"[[{text}]]"


def _has_colours() -> bool:
    import os

    return is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(inner) for inner in value]
    return value


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print_error("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), label="")


def _print_thread_exception(found: threading.ExceptHookArgs) -> None:
    if found.exc_type is not SystemExit and found.exc_value is not None:
        _print_exception(found.exc_type, found.exc_value, found.exc_traceback)
