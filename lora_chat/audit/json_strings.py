"""The strings inside JSON, each with its key as context: `"password": ` says what its value is."""

import json
from collections.abc import Callable, Mapping
from typing import Any

_MAX_DEPTH = 100
_MAX_CONTEXT_CHARACTERS = 100
"""Characters of a key, the last ones, that give its value context; no detector looks further back."""


def parse_json_container(text: str) -> Any:
    """The object or list that a text is in JSON; None for any other text, and for what is nested very deeply."""
    if text[:1] not in "{[ \n\r\t" or not text.lstrip(" \n\r\t").startswith(("{", "[")):
        return None
    try:
        value = json.loads(text, object_pairs_hook=_reject_repeated_keys)
    except (ValueError, RecursionError):
        return None
    return value if _depth(value) < _MAX_DEPTH else None


def rewrite_strings(value: Any, rewrite: Callable[[str, str], str], context: str = "", levels: int = 3) -> Any:
    """The value with `rewrite(context, text)` in place of each string, key and number; a number only if it changes.

    `context` is what stands before the string, such as `"phone": `. Of keys that become equal, each stays.
    A string that is JSON itself is taken apart too, `levels` deep.
    """
    if isinstance(value, dict):
        result: dict[str, Any] = {}
        copies: dict[str, int] = {}
        for key, inner in value.items():
            new = rewrite("", key)
            if new in result:
                new = _unused_key(new, result, copies)
            result[new] = rewrite_strings(inner, rewrite, f'"{new[-_MAX_CONTEXT_CHARACTERS:]}": ', levels)
        return result
    if isinstance(value, list):
        return [rewrite_strings(inner, rewrite, context, levels) for inner in value]
    if isinstance(value, str):
        inside = parse_json_container(value) if levels else None
        if inside is None:
            return rewrite(context, value)
        new = rewrite_strings(inside, rewrite, context, levels - 1)
        return value if new == inside else json.dumps(new, ensure_ascii=False)
    if isinstance(value, bool) or value is None:
        return value
    text = repr(value)
    new = rewrite(context, text)
    return value if new == text else new


def _unused_key(key: str, taken: Mapping[str, Any], copies: dict[str, int]) -> str:
    """Return a key that is not taken; `copies` counts what was tried, so that many equal keys stay linear."""
    while True:
        copies[key] = copies.get(key, 1) + 1
        if f"{key} {copies[key]}" not in taken:
            return f"{key} {copies[key]}"


def _reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; raises ValueError for a repeated key, because only its last value would be looked at."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("repeats a key")
    return result


def _depth(value: Any) -> int:
    """Levels of nesting, counted without recursion."""
    depth, level = 0, [value]
    while level and depth < _MAX_DEPTH:
        depth += 1
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [item for items in inner for item in items]
    return depth
