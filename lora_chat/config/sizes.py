"""Sizes of memory in the notation of recipes and options, such as 12GiB."""

import re

from lora_chat.errors import RecipeError

SIZE_PATTERN = r"^(auto|unlimited|\d{1,9}(\.\d{1,9})? ?([Gg]([Ii]?[Bb])?|[Mm]([Ii]?[Bb])?))$"
"""Pattern of `training.memory`."""
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(GiB|GB|G|MiB|MB|M)", re.IGNORECASE)
_UNIT_BYTES = {"gib": 2**30, "g": 2**30, "gb": 10**9, "mib": 2**20, "m": 2**20, "mb": 10**6}


def parse_size(text: str, where: str) -> int:
    """Return the number of bytes in `12GiB`, `800 MB` or `12G` (which is 12GiB). Raises RecipeError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or not float(match[1]):
        raise RecipeError(f"{where}: {text} is not a size of memory. Fix: write 12GiB, 12GB or 800MiB.")
    return round(float(match[1]) * _UNIT_BYTES[match[2].lower()])
