"""JSON as its standard has it, where Python's parser would look away."""

import json
import math
from collections import Counter
from typing import Any

MAX_DEPTH = 100
"""More lists and objects inside one another than anyone writes; what goes on with them is recursive."""


def parse_strict_json(text: str) -> Any:
    """Decode; raises ValueError for syntax, repeated keys, NaN and Infinity, numbers too long, and endless nesting."""
    try:
        value = STRICT_DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and is_nested_too_deeply(value):
        raise ValueError("is nested too deeply")
    return value


def is_nested_too_deeply(value: Any) -> bool:
    """Whether lists and objects stand in one another more than MAX_DEPTH times."""
    level = [value]
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
        raise ValueError(f"gives {next(name for name, n in counts.items() if n > 1)!a} twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"holds {name}, which is not JSON")


def _parse_finite_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"holds the number {digits[:20]}, which is too large")
    return value


def _parse_int(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python converts no more than a few thousand digits
        raise ValueError(f"holds a number of {len(digits)} digits") from None


STRICT_DECODER = json.JSONDecoder(
    object_pairs_hook=_reject_repeated_keys,
    parse_constant=_refuse_constant,
    parse_float=_parse_finite_float,
    parse_int=_parse_int,
)
