"""A JSON parser that refuses everything outside the standard, such as NaN and repeated keys."""

import json
import math
from collections import Counter
from typing import Any, NoReturn

MAX_DEPTH = 100
"""Largest depth of nested lists and objects, because later code is recursive."""


def parse_strict_json(text: str) -> Any:
    """Parse JSON. Raise ValueError for wrong syntax, repeated keys, NaN, Infinity, long numbers and deep nesting."""
    try:
        value = STRICT_DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and is_nested_too_deeply(value):
        raise ValueError("is nested too deeply")
    return value


def is_nested_too_deeply(value: object) -> bool:
    """Return whether lists and objects are nested more than MAX_DEPTH deep."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"has the key {next(name for name, n in counts.items() if n > 1)!a} twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"contains {name}, which is not JSON")


def _parse_finite_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"contains the number {digits[:20]}, which is too large")
    return value


def _parse_int(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python converts only a few thousand digits
        raise ValueError(f"contains a number of {len(digits)} digits") from None


STRICT_DECODER = json.JSONDecoder(
    object_pairs_hook=_reject_repeated_keys,
    parse_constant=_refuse_constant,
    parse_float=_parse_finite_float,
    parse_int=_parse_int,
)
