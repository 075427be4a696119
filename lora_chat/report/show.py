"""Numbers, times, sizes and JSON values as text, and tables."""

from collections.abc import Iterable, Mapping, Sequence

from lora_chat.report.element import Child, Markup, element
from lora_chat.report.values import as_number

NOTHING = "–"
_MAX_TEXT = 2_000


def show_number(value: float | None, digits: int = 4) -> str:
    """Format a number with some digits, or a dash for None."""
    if value is None:
        return NOTHING
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.{digits}g}" if 1e-4 <= abs(value) < 1e6 else f"{value:.3e}"


def show_share(value: float | None) -> str:
    """Format a share as a percentage, or a dash for None."""
    return NOTHING if value is None else f"{value:.1%}"


def show_part(count: int, total: int) -> str:
    """Format a count of a total with its share."""
    return f"{count:,} of {total:,} ({show_share(count / total)})" if total else f"{count:,} of 0"


def show_seconds(value: float | None) -> str:
    """Format seconds in the largest fitting unit, or a dash for None."""
    if value is None:
        return NOTHING
    if value < 99.5:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 5400 else f"{value / 3600:.1f} h"


def show_bytes(value: float | None) -> str:
    """Format bytes, or a dash for None."""
    if value is None:
        return NOTHING
    if value < 1e6:
        return f"{value / 1e3:.1f} kB"
    return f"{value / 1e6:.1f} MB" if value < 1e9 else f"{value / 1e9:.2f} GB"


def show_value(value: object) -> str:
    """Format a JSON value on one line, cut to a length."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return cut_text(value, _MAX_TEXT)
    number = as_number(value)
    if number is not None:
        return show_number(number)
    if isinstance(value, list):
        return ", ".join(show_value(part) for part in value[:50]) + (", ..." if len(value) > 50 else "") or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {show_value(part)}" for key, part in list(value.items())[:50]) or "none"
    return "a number that cannot be shown"


def cut_text(text: str, limit: int) -> str:
    """Return text of at most about `limit` characters, and the number of the others."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} characters left out)"


def build_table(
    head: Sequence[Child],
    rows: Iterable[Sequence[Child]],
    *,
    caption: str,
    class_: str = "",
    has_row_heads: bool = True,
) -> Markup:
    """Return a table that scrolls on narrow screens; the first cell of a row is its header."""

    def build_row(cells: Sequence[Child]) -> Markup:
        first = element("th", cells[0], scope="row") if has_row_heads else element("td", cells[0])
        return element("tr", first, (element("td", cell) for cell in cells[1:]))

    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", (element("th", cell, scope="col") for cell in head))),
        element("tbody", (build_row(cells) for cells in rows)),
        class_=class_ or None,
    )
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption)


def build_facts(values: Mapping[str, Child], caption: str) -> Markup:
    """Return a list of names and values."""
    pairs = (
        element("div", element("dt", name), element("dd", value, dir="auto"), class_="fact")
        for name, value in values.items()
    )
    return element("dl", pairs, class_="facts", aria_label=caption)
