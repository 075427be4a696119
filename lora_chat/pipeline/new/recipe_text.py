"""The text of a new recipe: YAML with a comment for each setting that is not a default."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lora_chat.system.sanitize import sanitize_line

_PLAIN_WORD = re.compile(r"(?:\.{0,2}/)*[A-Za-z][A-Za-z0-9_]*(?:[./-][A-Za-z0-9_]+)*|[48]bit")
_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_WIDTH, _MAX_COLUMN = 118, 44
"""Width of a line, and column in which comments begin if their settings are short."""
_MAX_COMMENT = 400


@dataclass(frozen=True)
class Setting:
    """A value of a recipe with its reason."""

    value: object
    comment: str = ""


@dataclass
class RecipeDraft:
    """The sections of a recipe in their order, and the comment at its beginning."""

    summary: str
    """First line of the recipe."""
    introduction: list[str] = field(default_factory=list)
    sections: dict[str, dict[str, Setting]] = field(default_factory=dict)

    def set(self, section: str, key: str, value: object, comment: str = "") -> None:
        """Set a value, in place of an earlier one."""
        self.sections.setdefault(section, {})[key] = Setting(value, comment)

    def drop(self, section: str, key: str) -> None:
        """Remove a value, if there is one."""
        self.sections.get(section, {}).pop(key, None)

    @property
    def tree(self) -> dict[str, dict[str, object]]:
        """Return the values of all sections."""
        return {
            name: {key: setting.value for key, setting in section.items()}
            for name, section in self.sections.items()
            if section
        }


def format_recipe(draft: RecipeDraft) -> str:
    """Return a recipe as YAML. Texts from data and file names are quoted, and in comments on one line."""
    lines = [line for text in (draft.summary, *draft.introduction) for line in _format_comment(text)]
    for name, section in draft.sections.items():
        if not section:
            continue
        lines.append(f"{name}:")
        width = min(_MAX_COLUMN, max(len(_format_setting(key, s.value)) for key, s in section.items()))
        for key, setting in section.items():
            lines += _format_line(_format_setting(key, setting.value), setting.comment, width)
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def format_value(value: object) -> str:
    """Return a value as YAML on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _format_number(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_format_text(str(key))}: {format_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(format_value, value)) + "]"
    return str(value) if isinstance(value, int) else _format_text(str(value))


def _format_number(value: float) -> str:
    """Return a number, small ones as `2e-4`."""
    if 0 < value < 0.01:
        mantissa, _, exponent = f"{value:e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _format_text(text: str) -> str:
    """Return a text as a plain word if YAML reads it as text, otherwise in double quotes with escapes."""
    if _PLAIN_WORD.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(character: str) -> str:
    """Return a character of a text in double quotes; everything that is invisible becomes an escape."""
    if character in '"\\':
        return "\\" + character
    if character == "\n":
        return "\\n"
    if character == " " or character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _format_setting(key: str, value: object) -> str:
    return f"  {key}: {format_value(value)}"


def _format_line(setting: str, comment: str, width: int) -> list[str]:
    """Return a setting with its comment at the end of the line, or above it if that is too long."""
    comment = sanitize_line(comment, _MAX_COMMENT)
    if not comment:
        return [setting]
    line = f"{setting.ljust(width)}  # {comment}"
    if len(line) <= _WIDTH:
        return [line]
    return [
        *textwrap.wrap(comment, _WIDTH, initial_indent="  # ", subsequent_indent="  # ", break_on_hyphens=False),
        setting,
    ]


def _format_comment(text: str) -> list[str]:
    """Return a sentence as lines of a comment."""
    text = sanitize_line(text, _MAX_COMMENT)
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) or ["#"]
