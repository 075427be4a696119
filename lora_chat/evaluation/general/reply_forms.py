"""Checks of the form of a reply: number of words or lines, JSON, case, beginning and end."""

import re
from collections.abc import Sequence

from lora_chat.evaluation.general.reply_texts import has_loop, is_in_language, normalize, split_units
from lora_chat.system.strict_json import parse_strict_json

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL)
_END_MARKS = " \t\n.!。！*\"'`”」"


def has_word_count(reply: str, lowest: int, highest: int) -> bool:
    """Return whether a reply has a number of words in this range; a Chinese character counts as a word."""
    return lowest <= len(split_units(reply)) <= highest


def has_line_count(reply: str, count: int) -> bool:
    """Return whether a reply has exactly this number of lines with words."""
    return sum(bool(split_units(line)) for line in reply.splitlines()) == count


def has_parts(reply: str, separator: str, count: int) -> bool:
    """Return whether a reply is one line of this number of parts with a separator between them, none of them long."""
    lines = [line for line in reply.splitlines() if line.strip()]
    parts = [split_units(part) for part in normalize(lines[0]).split(normalize(separator))] if len(lines) == 1 else []
    return len(parts) == count and all(1 <= len(part) <= 4 for part in parts)


def is_json_object(reply: str, keys: Sequence[str]) -> bool:
    """Return whether a reply is a JSON object with exactly these keys, with or without a code fence around it."""
    fenced = _FENCE.fullmatch(reply.strip())
    try:
        value = parse_strict_json(fenced[1] if fenced else reply.strip())
    except ValueError:
        return False
    return isinstance(value, dict) and value.keys() == set(keys)


def is_upper_case(reply: str) -> bool:
    """Return whether all letters of a reply are capitals, and it has any."""
    return reply.isupper()


def is_lower_case(reply: str) -> bool:
    """Return whether no letter of a reply is a capital, and it has letters."""
    return reply.islower()


def begins_with(reply: str, text: str) -> bool:
    """Return whether a reply begins with a text, in any case, apart from marks before it."""
    normalized, wanted = normalize(reply).lstrip(" \t\n*\"'`“「"), normalize(text)
    after = normalized[len(wanted) : len(wanted) + 1]
    return normalized.startswith(wanted) and not (after.isascii() and after.isalnum())


def ends_with(reply: str, text: str) -> bool:
    """Return whether a reply ends with a text in its exact case, apart from marks after it."""
    return reply.rstrip(_END_MARKS).endswith(text.rstrip(_END_MARKS))


def is_chat_reply(reply: str, language: str, words: int) -> bool:
    """Return whether a reply has words of a language, at most `words` of them, and no loop."""
    return 1 <= len(split_units(reply)) <= words and is_in_language(reply, language) and not has_loop(reply)
