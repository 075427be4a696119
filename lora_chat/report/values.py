"""Checked access to JSON values of unknown shape, because a received run may contain anything."""

import math
from collections.abc import Mapping
from typing import cast


def as_object(value: object) -> Mapping[str, object]:
    """Return a JSON object, or an empty one for any other value."""
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    """Return a JSON list, or an empty one for any other value."""
    return value if isinstance(value, list) else []


def as_number(value: object) -> float | None:
    """Return a finite number, or None for any other value. True and false are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_count(value: object) -> int | None:
    """Return a whole number of at least 0, or None for any other value."""
    number = as_number(value)
    return int(number) if number is not None and 0 <= number < 1e15 and number == int(number) else None


def as_text(value: object) -> str | None:
    """Return a string, or None for any other value."""
    return value if isinstance(value, str) else None


def as_interval(value: object) -> tuple[float, float] | None:
    """Return a pair of finite numbers, or None for any other value."""
    numbers = [as_number(part) for part in as_list(value)]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        return None
    return numbers[0], numbers[1]


def find_value(value: object, *keys: str) -> object:
    """Return the value at a path of keys, or None if it is missing."""
    for key in keys:
        value = as_object(value).get(key)
    return value


def flatten(value: object, prefix: str = "", limit: int = 2_000) -> dict[str, object]:
    """Return the values of nested objects by their paths, such as `training.epochs`; at most `limit` of them."""
    flat: dict[str, object] = {}
    pending: list[tuple[str, object]] = [(prefix, value)]
    while pending and len(flat) < limit:
        path, part = pending.pop()
        if isinstance(part, dict) and part:
            pending += [(f"{path}.{key}" if path else str(key), inner) for key, inner in reversed(part.items())]
        elif path:
            flat[path] = part
    return flat
