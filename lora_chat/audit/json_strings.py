"""The strings inside JSON, each with its key as context, because `"password": ` shows the meaning of its value."""

import json
from collections.abc import Callable, Mapping
from typing import TypeAlias

_MAX_DEPTH = 100
_MAX_CONTEXT_CHARACTERS = 100
"""Number of characters at the end of a key that are the context of its value. No detector reads more."""
_MAX_OUTER_CHARACTERS = 40
"""Number of characters of outer keys in the context, as in `"phone": "home": `."""
_MAX_EXACT_FLOAT = 2.0**53
JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"


def parse_json_container(text: str) -> "list[JsonValue] | dict[str, JsonValue] | None":
    """Return the object or list that a text contains as JSON; None for other texts and for very deep nesting."""
    if text[:1] not in "{[ \n\r\t" or not text.lstrip(" \n\r\t").startswith(("{", "[")):
        return None
    try:
        value: list[JsonValue] | dict[str, JsonValue] = json.loads(text, object_pairs_hook=_reject_repeated_keys)
    except (ValueError, RecursionError):
        return None
    return value if _depth(value) < _MAX_DEPTH else None


def rewrite_strings(
    value: JsonValue, rewrite: Callable[[str, str], str], context: str = "", levels: int = 3
) -> JsonValue:
    """Return the value with `rewrite(context, text)` in place of each string and key, and of each number it changes.

    `context` is the text before the string, such as `"phone": `. Keys that become equal are numbered. A string that
    contains JSON is rewritten string by string too, to a depth of `levels`.
    """
    if isinstance(value, dict):
        result: dict[str, JsonValue] = {}
        copies: dict[str, int] = {}
        outer = context[-_MAX_OUTER_CHARACTERS:]
        for key, inner in value.items():
            new = rewrite("", key)
            if new in result:
                new = _unused_key(new, result, copies)
            own = f'"{new[-_MAX_CONTEXT_CHARACTERS:]}": '
            result[new] = rewrite_strings(inner, rewrite, outer + own if _needs_outer(inner) else own, levels)
        return result
    if isinstance(value, list):
        return [rewrite_strings(inner, rewrite, context, levels) for inner in value]
    if isinstance(value, str):
        inside = parse_json_container(value) if levels else None
        if inside is None:
            return rewrite(context, value)
        new_inside = rewrite_strings(inside, rewrite, context, levels - 1)
        return value if new_inside == inside else json.dumps(new_inside, ensure_ascii=False)
    if isinstance(value, bool) or value is None:
        return value
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < _MAX_EXACT_FLOAT
    text = str(int(value)) if is_whole else repr(value)
    new = rewrite(context, text)
    return value if new == text else new


def _needs_outer(value: JsonValue) -> bool:
    """Return whether the outer keys may announce a value: only numbers, because longer contexts take time."""
    return value[-1:].isdigit() and len(value) > 6 if isinstance(value, str) else not isinstance(value, float)


def _unused_key(key: str, used: Mapping[str, JsonValue], copies: dict[str, int]) -> str:
    """Return an unused key with a number; `copies` counts the attempts, because many equal keys must stay linear."""
    while True:
        copies[key] = copies.get(key, 1) + 1
        if f"{key} {copies[key]}" not in used:
            return f"{key} {copies[key]}"


def _reject_repeated_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    """Return an object. Raises ValueError for a repeated key, because only its last value would be checked."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("repeats a key")
    return result


def _depth(value: JsonValue) -> int:
    """Return the number of nested levels, counted without recursion."""
    depth, level = 0, [value]
    while level and depth < _MAX_DEPTH:
        depth += 1
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [item for items in inner for item in items]
    return depth
