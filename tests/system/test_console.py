"""Strangers' text that reaches the terminal has no effect and hides nothing."""

import io
import json
import logging
import re
import subprocess
import sys
import threading
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.commands.parser import make_parser
from lora_chat.system.console import (
    Highlight,
    ReplyPrinter,
    filter_output,
    is_terminal,
    label_output,
    print_json,
    print_logged_messages,
    print_message,
    print_result,
    restore_output,
    silence_output,
)

ATTACKS = {
    "title": "\x1b]0;PWNED\x07",
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x1b\\",
    "link": "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "cursor": "\x1b[2A\x1b[2K\rAll checks passed.",
    "colour": "\x1b[31mred\x1b[0m",
    "query": "\x1b[6n\x1b[c\x05",
    "device control": "\x1bP+q544e\x1b\\",
    "C1": "\x9b31m\x9d0;PWNED\x9c\x90x\x85",
    "backspace": "evil\x08\x08\x08\x08good\x7f",
    "override": "\u202egnp.exe\u202c",
    "isolate": "\u2066a\u2067b\u2068c\u2069",
    "marks": "\u200e\u200f\u061c",
    "zero width": "a\u200bb\u2060c\ufeffd\u00ade\u180e",
    "line separators": "a\u2028b\u2029c\x0bd\x0ce\x1cf",
    "tags": "hi\U000e0049\U000e0067\U000e006e",
    "surrogate": "\ud83d x \udce4",
    "private": "\ue000\U000f0000",
    "joiners among ASCII": "pay\u200dpal \u200cx",
    "selectors that carry data": "a\ufe01 \u4f60\ufe00\ufe01\U000e0101\U000e0102",
    "letters that look like nothing": "a\u3164b\u115fc\uffa0d\u034fe",
    "annotations": "\ufff9a\ufffab\ufffb",
    "carriage return": "danger\rsafe  ",
}
FINE = [
    "plain, äöü 你好 🙂 ❤️ 1️⃣ 👩🏽‍💻 👨‍👩‍👧 🏳️‍🌈",
    "می‌خواهم",  # Persian with a zero-width non-joiner
    "क्‍ष न्‌",  # Devanagari with both joiners
    "no\u00a0break\u3000wide ─│█ ½ e\u0301",
    "two\nlines\tand a tab",
]


def acts(text, kept="\n\t"):
    """Return the characters that act on a terminal or are invisible."""
    joined = "\u200c\u200d"
    return [c for c in text if c not in kept and c not in joined and unicodedata.category(c) in CATEGORIES]


CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
attacks = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


@pytest.fixture
def printed(monkeypatch):
    """Return a function that prints and returns the output of the terminal."""

    def printed(write):
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        monkeypatch.setattr(threading, "excepthook", threading.excepthook)
        filter_output()
        write()
        return out.getvalue() + err.getvalue()

    return printed


def write_reply(text):
    printer = ReplyPrinter()
    for character in text:
        printer.write(character)
    printer.close()


def log(text):
    handler = logging.StreamHandler()
    logger = logging.Logger("stranger")
    logger.addHandler(handler)
    logger.error(text)


def raise_in_thread(text):
    def fail():
        raise ValueError(text)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def raise_uncaught(text):
    try:
        raise KeyError(text)
    except KeyError as error:
        caught = ValueError(text)
        caught.__cause__ = error
        caught.add_note(text) if hasattr(caught, "add_note") else None
        sys.excepthook(type(caught), caught, None)


def parse(text):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["plan", "x", text])


WAYS = {
    "notice": print_message,
    "result": print_result,
    "highlight": lambda text: print_result(["x", Highlight(text)]),
    "json": lambda text: print_json({text: [text]}),
    "reply": write_reply,
    "library": lambda text: sys.stderr.write("x" + text),
    "library's lines": lambda text: sys.stdout.writelines(["x" + text + "x"]),
    "log": log,
    "thread": raise_in_thread,
    "uncaught": raise_uncaught,
    "arguments": parse,
}


@attacks
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_output_function_filters_attacks(printed, way, attack):
    text = printed(lambda: way(f"{attack}."))
    assert text
    assert not acts(text)
    assert f"{attack}." not in text
    assert re.search(r"\\[xuUr]", text)


@pytest.mark.parametrize("text", FINE)
@pytest.mark.parametrize("way", [print_message, print_result, write_reply], ids=["notice", "result", "reply"])
def test_normal_text_is_printed_unchanged(printed, way, text):
    assert printed(lambda: way(text)) == text + "\n"


def test_split_attack_is_filtered(printed):
    def write():
        printer = ReplyPrinter()
        for piece in ("\x1b", "]0;", "PWNED", "\x07", "👩", "\u200d", "💻", "x", "\u200d", "y"):
            printer.write(piece)

    assert printed(write) == "\\x1b]0;PWNED\\x07👩\u200d💻x\\u200dy"


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.text(st.characters(), max_size=5), max_size=8))
def test_pieces_are_filtered_like_the_whole_text(pieces):
    from lora_chat.system.sanitize import TextFilter, sanitize_text

    one = TextFilter()
    assert "".join(map(one.feed, pieces)) == sanitize_text("".join(pieces))
    assert not acts(sanitize_text("".join(pieces)))


def test_progress_bars_of_libraries_still_work(printed):
    bar = "\rmodel.safetensors:  50%|█████     | 1/2 [00:01<00:01]"
    assert printed(lambda: sys.stderr.write(bar)) == bar
    assert printed(lambda: sys.stderr.write("\n\x1b[A")) == "\n\x1b[A"
    assert "\x1b" not in printed(lambda: sys.stderr.write("\rname\x1b[2Jx:  50%"))
    assert printed(lambda: sys.stderr.write("a\rb")) == "a\\rb"


def test_the_live_bar_shows_text_as_text(printed, monkeypatch):
    from lora_chat.system.bar import LiveBar

    def write():
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys.stderr.raw, "isatty", lambda: True, raising=False)
        bar = LiveBar("first " + ATTACKS["title"])
        bar.update(ATTACKS["clipboard"] + "[bold]x[/bold]", 1, 2)
        bar.print_above(ATTACKS["link"] + " :skull: [link=https://evil.example]y[/link]")
        bar.close()

    monkeypatch.setenv("TERM", "xterm")
    text = printed(write)
    assert "\x1b[" in text  # the bar's own
    assert "\x1b]" not in text and "\x07" not in text
    assert ":skull: [link=https://evil.example]y[/link]" in text.replace("\n", "")
    assert "[bold]" in text


def test_highlights_are_coloured(printed, monkeypatch):
    def write():
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        print_result(["a ", Highlight("b\x1b[0mc"), " d"])

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert printed(write) == "a \x1b[1;32mb\\x1b[0mc\x1b[0m d\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(write) == "a [[b\\x1b[0mc]] d\n"


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_json_is_ascii_and_parses_to_the_same(value):
    before, sys.stdout = sys.stdout, io.StringIO()
    try:
        print_json(value)
        text = sys.stdout.getvalue()
    finally:
        sys.stdout = before
    assert text.isascii()
    assert not acts(text, "\n")
    assert text.count("\n") == 1
    assert json.loads(text) == value


def test_nonfinite_numbers_become_null(printed):
    text = printed(lambda: print_json({"a": float("nan"), "b": [float("inf")], "c": (1.5, -float("inf"))}))
    assert json.loads(text) == {"a": None, "b": [None], "c": [1.5, None]}


def test_unsupported_characters_are_printed_as_escapes():
    script = "from lora_chat.system.console import *; filter_output(); print_result('ä 你'); print_message('你')"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"\xe4 \\u4f60\n", b"\\u4f60\n")


def test_a_program_without_a_console_prints_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    filter_output()
    print_message("x")
    print_result("x")


def test_tokens_are_printed_fast(printed):
    import time

    def write():
        printer = ReplyPrinter()
        began = time.process_time()
        for _ in range(20_000):
            printer.write(" wörd")
        assert time.process_time() - began < 2  # a token takes a model milliseconds

    assert printed(write).count("wörd") == 20_000


def test_log_messages_are_printed_filtered_and_once(printed):
    def write():
        print_logged_messages()
        print_logged_messages()
        logging.getLogger("lora_chat.pipeline").info(f"a {ATTACKS['title']}")
        logging.getLogger("lora_chat.pipeline").debug("hidden")

    text = printed(write)
    assert text.startswith("a ") and text.count("\n") == 1
    assert not acts(text, "\n")


def test_messages_are_printed_above_the_live_bar_until_it_is_closed(printed, monkeypatch):
    from lora_chat.system import bar as bar_module

    shown = []
    monkeypatch.setattr(bar_module.LiveBar, "print_above", lambda self, text: shown.append(text))

    def write():
        bar = bar_module.LiveBar("first")
        print_message("above")
        bar.close()
        print_message("plain")

    assert printed(write).endswith("plain\n")
    assert shown == ["above"]


def test_a_later_process_prints_nothing_or_lines_with_its_number(capsys):
    before = sys.stdout, sys.stderr
    filter_output()
    try:
        silence_output()
        print_message("a")
        print_result("b")
        sys.stderr.write("c\n")
        assert capsys.readouterr() == ("", "")
        label_output("[2] ")
        print_message("one\ntwo\033[31m")
        print_result("three")
        sys.stderr.write("\r10%\r")
        sys.stderr.write("half")
        sys.stderr.write(" line\n")
        assert not is_terminal(sys.stderr)
        assert capsys.readouterr() == ("", "[2] one\n[2] two\\x1b[31m\n[2] three\n[2] 10%\n[2] half line\n")
        restore_output()
        print_message("d")
        print_result("e")
        assert capsys.readouterr() == ("e\n", "d\n")
    finally:
        sys.stdout, sys.stderr = before
