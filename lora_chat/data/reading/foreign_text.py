"""Explain the first lines of a text that is neither JSON nor a table, in one sentence with the fix."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_MAX_LINES = 20
_CJK = re.compile(r"[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]")
_ENCODING_FIX = "Fix: save it as UTF-8, for example with iconv -f {0} -t UTF-8 FILE > NEW_FILE"


@dataclass(frozen=True)
class TextKind:
    """A kind of text that is not read as rows; one entry of `TEXT_KINDS`."""

    description: str
    """Text after "is not valid JSON, but", with the fix."""
    matches: Callable[[str, Sequence[str]], bool]
    """Whether the first lines, joined and separately, are of this kind."""


def explain_text(raw_lines: Sequence[bytes]) -> str:
    """Return the kind of a text, of which no line is valid JSON, and the fix."""
    raw_lines = raw_lines[:_MAX_LINES]
    encoding = _explain_encoding(raw_lines)
    if encoding:
        return encoding
    lines = [line.decode("utf-8", errors="replace")[:100_000].strip() for line in raw_lines]
    text = "\n".join(lines)
    kind = next(kind for kind in TEXT_KINDS if kind.matches(text, lines))
    return f"is not valid JSON, but {kind.description}" if kind.description else ""


def _explain_encoding(raw_lines: Sequence[bytes]) -> str | None:
    """Return the explanation for lines of which at least half are not UTF-8, otherwise None."""
    faults = []
    for line in raw_lines:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            faults.append(error.start + 1)
    if not faults or 2 * len(faults) < len(raw_lines):
        return None
    try:
        chinese = b"\n".join(raw_lines).decode("gb18030")
        is_chinese = len(_CJK.findall(chinese)) > sum(ord(c) > 127 for c in chinese) / 2
    except UnicodeDecodeError:
        is_chinese = False
    guess = _ENCODING_FIX.format("GB18030" if is_chinese else "WINDOWS-1252")
    return f"is not UTF-8 text (byte {faults[0]} of the line). {guess}"


def _most(pattern: str, share: float = 0.5) -> Callable[[str, Sequence[str]], bool]:
    """Return a check of whether a share of lines matches."""
    compiled = re.compile(pattern)
    return lambda text, lines: sum(bool(compiled.match(line)) for line in lines) >= max(1.0, share * len(lines))


def _matches(pattern: str) -> Callable[[str, Sequence[str]], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda text, lines: compiled.match(text) is not None


def _is_recipe(text: str, lines: Sequence[str]) -> bool:
    sections = {line.partition(":")[0] for line in lines if re.match(r"\w+:\s*(#.*|\{.*)?$", line)}
    names = {line.partition(":")[0] for line in lines}
    return "data" in sections and bool({"base", "adapter", "training", "output"} & names)


def _has_python_literals(text: str, lines: Sequence[str]) -> bool:
    return lines[0].startswith(("{", "[")) and bool(re.match(r"[\[{(]+\s*'|.*'\s*:\s*", lines[0]))


def _is_odd_json(text: str, lines: Sequence[str]) -> bool:
    return bool(re.search(r"^\s*(//|/\*|#)", text)) and bool(re.search(r"^\s*[\[{]", text, re.MULTILINE))


TEXT_KINDS = (
    TextKind(
        "an HTML page, such as the error page of a download. Fix: download the data file itself",
        _matches(r"\s*(<!doctype html|<html|<head)"),
    ),
    TextKind("XML. Fix: write the dialogues as JSON lines", _matches(r"\s*<(\?xml|[a-z][\w:.-]*[\s>/])")),
    TextKind("a recipe. Fix: give the recipe to the command, and name its data in data.train", _is_recipe),
    TextKind("has the notation of Python. Fix: write each row with json.dumps", _has_python_literals),
    TextKind("JSON with comments, which are not part of JSON. Fix: remove them", _is_odd_json),
    TextKind("", lambda text, lines: lines[0].startswith(("{", "["))),  # JSON with faults, which are reported by line
    TextKind("YAML. Fix: write the dialogues as JSON lines", _most(r"(- +)?[\w\"'-]+:( |$)|- [^ ]|---( |$)|[|>]", 0.7)),
    TextKind(
        "plain text. Fix: to train on it as text, add --set data.format=text; for dialogues, write JSON lines",
        lambda text, lines: True,
    ),
)
"""Every kind of text, the most specific first; the last one takes all others."""
