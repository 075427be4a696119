"""Read values that data holds in another type: lists as JSON text or as columns, and numbers as text."""

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal

from lora_chat.data.dialogue import InvalidDialogueError
from lora_chat.data.reading.arrow_values import WholeFloat
from lora_chat.system.bounded_files import parse_bounded_json

_MAX_ENCODINGS = 5
"""How many times a value may be encoded as JSON text inside of JSON text."""
_PYTHON_TEXT = re.compile(r"[\[{(]\s*(?:\{\s*)?'")
"""Beginning of a Python list or dictionary that was written with `str`."""


def parse_json_text(text: str, where: str) -> object:
    """Return the value of JSON text, which may be encoded several times; raises InvalidDialogueError with `where`."""
    value: object = text
    for _ in range(_MAX_ENCODINGS):
        if not isinstance(value, str):
            break
        try:
            value = parse_bounded_json(value, strict=True)
        except ValueError as error:
            hint = " (it is the text of a Python object; write it with json.dumps)" if _PYTHON_TEXT.match(text) else ""
            raise InvalidDialogueError(f"{where} {error}{hint}") from None
    return value


def read_list(value: object, where: str) -> object:
    """Return a list that is given as JSON text or as an object of equally long lists; any other value as it is.

    `datasets` stores a sequence of objects as one object of lists. A null in it means a missing key.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{", '"'):
        value = parse_json_text(value.strip(), where)
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        lengths = {len(column) for column in value.values()}
        if len(lengths) == 1 and lengths != {0}:
            rows = zip(*value.values(), strict=True)
            return [{key: cell for key, cell in zip(value, cells, strict=True) if cell is not None} for cells in rows]
    return value


def plain_text(value: object, where: str) -> str | None:
    """Return a text, a number or a boolean as text, the last two as JSON writes them; None for any other value.

    Raises InvalidDialogueError for a number whose digits are unclear.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal) and value.is_finite():
        return format(value, "f")
    if not isinstance(value, bool | int | float):
        return None
    if isinstance(value, WholeFloat):
        raise InvalidDialogueError(
            f"{where} is the number {int(value)} in a column of floats, which may mean {int(value)} or {float(value)}; "
            "store the column as integers or as text"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidDialogueError(f"{where} is {value}, which is not a number")
    try:
        return json.dumps(value)
    except ValueError:  # Python converts only a few thousand digits
        raise InvalidDialogueError(f"{where} is a number with too many digits") from None
