"""All output to the terminal; the only module that prints, and every text is filtered.

File names, hub responses, recipes, dialogues, model replies and texts of exceptions come from strangers. None of them
may move the cursor, set a title, write to the clipboard, or change the direction of the text beside it.
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
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, cast

from lora_chat.system.activity import note_activity
from lora_chat.system.sanitize import TextFilter, sanitize_line, sanitize_text


def format_bytes(size: float) -> str:
    """Format a number of bytes as MB or GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def display_path(path: Path) -> str:
    """Return a path on one line, relative to the working directory if it is inside."""
    try:
        return sanitize_line(str(path.relative_to(Path.cwd())))
    except ValueError:
        return sanitize_line(str(path))


def quote_path(path: Path) -> str:
    """Return a path quoted for a shell, so that a stranger's file name runs nothing when the command is pasted."""
    return shlex.quote(display_path(path))


_GREEN, _PLAIN = "\033[1;32m", "\033[0m"
_MAX_ERROR_CHARACTERS = 10_000
"""Longest error message, in characters; the middle of a longer one is left out."""
_CURSOR_MOVES = re.compile(r"((?:[\r\n]|\033\[A)*)(.*?)(\r*)\Z", re.DOTALL)
"""Text between cursor moves of progress bars, which return to the start of the line or move up before and after it."""


@dataclass(frozen=True)
class Highlight:
    """Text that is printed in green, or between `[[` and `]]` on a terminal without colours."""

    text: str


ResultPart = str | Highlight


_live_display: Callable[[str], None] | None = None
"""Function that prints a message above the live display, if there is one."""


def print_message(text: str) -> None:
    """Print a message to the user on stderr, because stdout is for results."""
    note_activity()
    if _live_display:
        _live_display(text)
    else:
        _write(sys.stderr, sanitize_text(text) + "\n")


def show_messages_with(live_display: Callable[[str], None] | None) -> None:
    """Print later messages with a live display, which keeps its line below them; None ends that."""
    global _live_display
    _live_display = live_display


class MessageHandler(logging.Handler):
    """Logging handler that prints the package's messages for the user, without levels, names or times."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record."""
        print_message(record.getMessage())


def print_logged_messages() -> None:
    """Print all later log messages of the package. A second call changes nothing."""
    package_logger = logging.getLogger("lora_chat")
    package_logger.setLevel(logging.INFO)
    package_logger.propagate = False  # a library that configures the root logger would print each message again
    if not any(isinstance(handler, MessageHandler) for handler in package_logger.handlers):
        package_logger.addHandler(MessageHandler())


def print_error(text: str, label: str = "Error: ") -> None:
    """Print an error on stderr; leave out the middle of a very long one, such as one that quotes a long name."""
    if len(text) > _MAX_ERROR_CHARACTERS:
        start, end = text[: _MAX_ERROR_CHARACTERS // 2], text[-_MAX_ERROR_CHARACTERS // 2 :]
        text = f"{start} ... ({len(text) - _MAX_ERROR_CHARACTERS:,} characters left out) ... {end}"
    print_message(label + text)


def print_result(text: str | Iterable[ResultPart], end: str = "\n") -> None:
    """Print a result on stdout; only a Highlight is coloured."""
    parts = [text] if isinstance(text, str) else text
    _write(sys.stdout, "".join(map(_format_part, parts)) + end)


def print_json(value: object, indent: int | None = None) -> None:
    """Print JSON on stdout in ASCII, so that no string acts on the terminal; NaN and infinities become null."""
    _write(sys.stdout, json.dumps(_replace_nonfinite(value), ensure_ascii=True, allow_nan=False, indent=indent) + "\n")


class ReplyPrinter:
    """Printer of one model reply on stdout, piece by piece; line feeds and tabs are kept."""

    def __init__(self) -> None:
        self._filter = TextFilter()

    def write(self, piece: str) -> None:
        """Print the next piece immediately; an escape sequence that is split over two pieces is filtered as well."""
        _write(sys.stdout, self._filter.feed(piece))

    def close(self) -> None:
        """End the reply's last line."""
        _write(sys.stdout, "\n")


def filter_output() -> None:
    """Filter all later output of libraries, warnings, loggers and uncaught exceptions in this process."""
    sys.stdout, sys.stderr = _filter_stream(sys.stdout), _filter_stream(sys.stderr)
    sys.excepthook = _print_exception
    threading.excepthook = _print_thread_exception


def silence_output() -> None:
    """Discard all later output of this process."""
    _replace_streams(lambda raw: _LabelledStream(raw, None))


def label_output(label: str) -> None:
    """Begin each line of all later output with a label, and print it on stderr, because results are another's."""
    error_stream = _original(sys.stderr)
    _replace_streams(lambda raw: _LabelledStream(raw, label, error_stream))


def restore_output() -> None:
    """Print all later output as before `silence_output` and `label_output`."""
    _replace_streams(lambda raw: raw)


def keep_stdout_for_results() -> AbstractContextManager[TextIO]:
    """Return a context in which everything that libraries print on stdout goes to stderr."""
    return redirect_stdout(sys.stderr)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream exists and is a terminal."""
    return stream is not None and stream.isatty()


def shows_live_displays() -> bool:
    """Return whether bars may be drawn: stderr is a terminal, and this process runs a command, not a user's program."""
    return isinstance(sys.stderr, _FilteredStream) and is_terminal(cast("TextIO", sys.stderr))


def unfiltered_stderr() -> TextIO | None:
    """Return stderr without its filter, for a live display whose texts are already filtered."""
    return _unfiltered(sys.stderr)


class _FilteredStream:
    """A text stream that filters all text written to it."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        before, shown, after = cast("re.Match[str]", _CURSOR_MOVES.match(text)).groups()
        _write(self.raw, before, sanitize_text(shown), after)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


class _LabelledStream:
    """A text stream that writes whole lines with a label, or nothing."""

    def __init__(self, original: TextIO, label: str | None, target: TextIO | None = None) -> None:
        self.original = original
        """Stream that this one replaces."""
        self._target = target or original
        self._label = label
        self._rest = ""

    def write(self, text: str) -> int:
        if self._label is not None:
            *lines, self._rest = re.split("[\r\n]", self._rest + text)
            if any(lines):
                self._target.write("".join(f"{self._label}{line}\n" for line in lines if line))
                self._target.flush()
        return len(text)

    def flush(self) -> None:
        """Do nothing, because each line is flushed when it is complete."""

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def _replace_streams(replace: Callable[[TextIO], Any]) -> None:
    """Replace the unfiltered streams of this process; a function makes each from the original one."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _FilteredStream) and stream.raw is not None:
            stream.raw = replace(_original(stream))


def _original(stream: object) -> TextIO:
    """Return a stream without its filter and its label."""
    raw = stream.raw if isinstance(stream, _FilteredStream) else stream
    return cast("TextIO", raw.original if isinstance(raw, _LabelledStream) else raw)


def _filter_stream(stream: TextIO | None) -> TextIO:
    """Return a stream with a filter; return None unchanged."""
    if stream is None or isinstance(stream, _FilteredStream):  # a program without a console has no streams
        return cast("TextIO", stream)
    return cast("TextIO", _FilteredStream(stream))


def _unfiltered(stream: TextIO) -> TextIO | None:
    return stream.raw if isinstance(stream, _FilteredStream) else stream


def _write(stream: TextIO, *filtered: str) -> None:
    """Write filtered texts to a stream and flush it; replace characters that its encoding lacks by escapes."""
    raw = _unfiltered(stream)
    if raw is None:
        return
    text = "".join(filtered)
    encoding = getattr(raw, "encoding", None) or "utf-8"
    if encoding.lower() not in ("utf-8", "utf8"):  # some consoles on Windows
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


def _replace_nonfinite(value: object) -> object:
    """Replace NaN and infinities by None in nested dicts, lists and tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(inner) for inner in value]
    return value


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print_error("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), label="")


def _print_thread_exception(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_type is not SystemExit and failure.exc_value is not None:
        _print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
