"""The checks of replies in one table. A check is a pure function of a reply and the arguments of its item."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from lora_chat.evaluation.general.reply_forms import (
    begins_with,
    ends_with,
    has_line_count,
    has_parts,
    has_word_count,
    is_chat_reply,
    is_json_object,
    is_lower_case,
    is_upper_case,
)
from lora_chat.evaluation.general.reply_texts import (
    ADMISSIONS,
    admits_ignorance,
    contains_all,
    contains_any,
    equals_any,
    states_number,
)

ArgumentKind = Literal["texts", "text", "count", "number", "language"]
Arguments = Mapping[str, object]
"""Arguments of a check by their names, with the types that its entry in the table states."""

MAX_REPLY_CHARACTERS = 4000
"""Characters of a reply that checks read."""
MAX_TEXT_CHARACTERS, MAX_TEXTS, MAX_NUMBER = 300, 100, 10**15
"""Largest argument of a check: characters of a text, texts of a list, and value of a number."""


def _texts(arguments: Arguments, name: str) -> Sequence[str]:
    return cast("Sequence[str]", arguments[name])


def _text(arguments: Arguments, name: str) -> str:
    return cast("str", arguments[name])


def _count(arguments: Arguments, name: str) -> int:
    return cast("int", arguments[name])


@dataclass(frozen=True)
class ReplyCheck:
    """A check: its name in a file of items, its arguments, and its function."""

    name: str
    arguments: Mapping[str, ArgumentKind]
    apply: Callable[[str, Arguments], bool]

    def passes(self, reply: str, arguments: Arguments) -> bool:
        """Return whether a reply is right."""
        return self.apply(reply[:MAX_REPLY_CHARACTERS], arguments)

    def read_arguments(self, row: Mapping[str, object]) -> dict[str, object]:
        """Return the arguments of an item. Raise ValueError unless all are there with their types."""
        if unknown := sorted(row.keys() - self.arguments.keys()):
            raise ValueError(f"the check `{self.name}` has no argument {unknown[0][:50]!a}")
        return {name: _read_argument(self.name, name, kind, row.get(name)) for name, kind in self.arguments.items()}


def _read_argument(check: str, name: str, kind: ArgumentKind, value: object) -> object:
    """Return one argument. Raise ValueError if it has another type."""
    if kind == "texts" and isinstance(value, list) and 1 <= len(value) <= MAX_TEXTS and all(map(_is_text, value)):
        return tuple(value)
    is_right = {
        "texts": False,
        "text": _is_text(value),
        "count": type(value) is int and 1 <= value <= 10_000,
        "number": type(value) in (int, float) and abs(cast("float", value)) <= MAX_NUMBER,
        "language": isinstance(value, str) and value in ADMISSIONS,
    }
    if not is_right[kind]:
        raise ValueError(f"the check `{check}` needs the argument `{name}`: {_DESCRIPTIONS[kind]}")
    return value


def _is_text(value: object) -> bool:
    """Return whether a value is a text that is neither blank nor too long."""
    return isinstance(value, str) and len(value) <= MAX_TEXT_CHARACTERS and value.strip() != ""


_DESCRIPTIONS: Mapping[ArgumentKind, str] = {
    "texts": f"a list of 1 to {MAX_TEXTS} texts of at most {MAX_TEXT_CHARACTERS} characters",
    "text": f"a text of at most {MAX_TEXT_CHARACTERS} characters",
    "count": "a whole number from 1 to 10,000",
    "number": "a number",
    "language": f"one of {', '.join(ADMISSIONS)}",
}
_ALL_CHECKS = (
    ReplyCheck("contains", {"accept": "texts"}, lambda reply, a: contains_any(reply, _texts(a, "accept"))),
    ReplyCheck("contains_all", {"texts": "texts"}, lambda reply, a: contains_all(reply, _texts(a, "texts"))),
    ReplyCheck("equals", {"accept": "texts"}, lambda reply, a: equals_any(reply, _texts(a, "accept"))),
    ReplyCheck("number", {"value": "number"}, lambda reply, a: states_number(reply, cast("float", a["value"]))),
    ReplyCheck(
        "words",
        {"lowest": "count", "highest": "count"},
        lambda reply, a: has_word_count(reply, _count(a, "lowest"), _count(a, "highest")),
    ),
    ReplyCheck("lines", {"count": "count"}, lambda reply, a: has_line_count(reply, _count(a, "count"))),
    ReplyCheck(
        "parts",
        {"separator": "text", "count": "count"},
        lambda reply, a: has_parts(reply, _text(a, "separator"), _count(a, "count")),
    ),
    ReplyCheck("json_keys", {"keys": "texts"}, lambda reply, a: is_json_object(reply, _texts(a, "keys"))),
    ReplyCheck("upper_case", {}, lambda reply, a: is_upper_case(reply)),
    ReplyCheck("lower_case", {}, lambda reply, a: is_lower_case(reply)),
    ReplyCheck("begins_with", {"text": "text"}, lambda reply, a: begins_with(reply, _text(a, "text"))),
    ReplyCheck("ends_with", {"text": "text"}, lambda reply, a: ends_with(reply, _text(a, "text"))),
    ReplyCheck(
        "admits_ignorance",
        {"language": "language"},
        lambda reply, a: admits_ignorance(reply, _text(a, "language")),
    ),
    ReplyCheck(
        "chat",
        {"language": "language", "words": "count"},
        lambda reply, a: is_chat_reply(reply, _text(a, "language"), _count(a, "words")),
    ),
)
CHECKS: Mapping[str, ReplyCheck] = {check.name: check for check in _ALL_CHECKS}
"""Every check by its name."""
