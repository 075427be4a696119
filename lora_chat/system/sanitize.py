"""Foreign text that can be printed: nothing in it moves the cursor, changes colours or turns the direction."""

import unicodedata


def visible(text: str, limit: int | None = None) -> str:
    """Control characters as escapes, line feeds as such escapes too; cut to `limit` characters."""
    cut = text if limit is None or len(text) <= limit else text[: limit - 3] + "..."
    return "".join(_shown(character) for character in cut)


def visible_lines(text: str) -> str:
    """The same, with its line feeds."""
    return "\n".join(visible(line) for line in text.split("\n"))


def _shown(character: str) -> str:
    # Cc control, Cf format (direction marks among them), Cs half pairs, Co private, Zl and Zp separators.
    if character.isprintable() or character == " " or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")
