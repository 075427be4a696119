"""Aligned columns of text for a terminal."""

import unicodedata
from collections.abc import Collection, Sequence

from lora_chat.system.sanitize import sanitize_line

_GAP = "  "
_MAX_CELL_CHARACTERS = 60


def align_columns(
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    max_characters: int = _MAX_CELL_CHARACTERS,
) -> list[str]:
    """Return one line for each row, with columns of equal width; those in `right` are aligned to the right.

    Cells may come from strangers: each is put on one line, without control characters, and cut.
    """
    shown = [[sanitize_line(cell, max_characters) for cell in row] for row in rows]
    widths = [max(map(_count_cells, column)) for column in zip(*shown, strict=True)]
    return [
        _GAP.join(
            _pad(cell, width, to_right=number in right)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]


def _pad(text: str, width: int, *, to_right: bool) -> str:
    space = " " * (width - _count_cells(text))
    return space + text if to_right else text + space


def _count_cells(text: str) -> int:
    """Return the number of character cells that a terminal uses for a text; Chinese characters need two."""
    if text.isascii():
        return len(text)
    return sum(_cell_width(character) for character in text)


def _cell_width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
