"""Sizes of memory as users write them, such as 12GiB."""

import re

from lora_chat.errors import RecipeError

_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(GiB|GB|G|MiB|MB|M)", re.IGNORECASE)


SIZE_PATTERN = r"^(auto|unlimited|\d{1,9}(\.\d{1,9})? ?([Gg]([Ii]?[Bb])?|[Mm]([Ii]?[Bb])?))$"
"""Of `training.memory`."""


_UNIT_BYTES = {"gib": 2**30, "g": 2**30, "gb": 10**9, "mib": 2**20, "m": 2**20, "mb": 10**6}


def parse_size(text: str, where: str) -> int:
    """Bytes of `12GiB`, `800 MB` or `12G` (which is 12GiB); raises RecipeError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or not float(match[1]):
        raise RecipeError(f"{where}: {text} is no size. Write it as 12GiB, 12GB or 800MiB.")
    return round(float(match[1]) * _UNIT_BYTES[match[2].lower()])
