"""JSON as its standard has it, where Python's parser would look away."""

import json
from typing import Any


def parse_json(text: str) -> Any:
    """Decode; raises ValueError for syntax, repeated keys, NaN and Infinity, numbers too long, and endless nesting."""
    try:
        return STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"gives {next(n for n in names if names.count(n) > 1)!a} twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"holds {name}, which is not JSON")


STRICT = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
