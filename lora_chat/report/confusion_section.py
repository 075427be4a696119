"""Confusion matrices of labels, and precision, recall and F1 of each."""

from collections.abc import Mapping
from dataclasses import dataclass

from lora_chat.report.collect import RunRecord
from lora_chat.report.element import Markup, element, join
from lora_chat.report.section import Section, build_note
from lora_chat.report.show import build_table, cut_text, show_share
from lora_chat.report.values import as_count, as_list, as_number, as_object, as_text, find_value

_SIDES = ("base", "adapted")
_CLASS_FIGURES = ("precision", "recall", "f1")
_MAX_LABELS = 60
_MAX_CHARACTERS = 60
"""Longest label on the page, in characters."""
_SHADES = 5


@dataclass(frozen=True)
class Confusion:
    """Counts of the labels of replies by right labels."""

    title: str
    rows: tuple[str, ...]
    """Right labels."""
    columns: tuple[str, ...]
    """The same labels, and last all other replies."""
    counts: tuple[tuple[int, ...], ...]


def build_confusion(record: RunRecord) -> Section | None:
    """Return the confusion matrices of base and adapted model, or None if the replies are not labels."""
    stated = as_object(record.read("comparison").get("confusion"))
    rows, columns = (_read_labels(stated.get(key)) for key in ("labels", "columns"))
    matrices = [matrix for side in _SIDES if (matrix := _read_matrix(stated, side, rows, columns)) is not None]
    if not matrices:
        return None
    pair = element("div", map(_build_matrix, matrices), class_="pair")
    note = build_note("Rows are the right labels, columns the labels of the replies.")
    return Section("confusion", "Confusion of labels", join(pair, note, _build_classes(stated, rows)))


def _read_labels(value: object) -> tuple[str, ...]:
    labels = (as_text(label) for label in as_list(value)[:_MAX_LABELS])
    return tuple(cut_text(label, _MAX_CHARACTERS) for label in labels if label is not None)


def _read_matrix(
    stated: Mapping[str, object], side: str, rows: tuple[str, ...], columns: tuple[str, ...]
) -> Confusion | None:
    """Return the matrix of one model, or None unless it is complete."""
    table = [[as_count(cell) for cell in as_list(row)] for row in as_list(stated.get(side))]
    counts = tuple(tuple(cell for cell in row if cell is not None) for row in table)
    if not rows or len(counts) != len(rows) or any(len(row) != len(columns) for row in counts):
        return None
    return Confusion(side.capitalize(), rows, columns, counts)


def _build_classes(stated: Mapping[str, object], labels: tuple[str, ...]) -> Markup | None:
    """Return precision, recall and F1 of each label, or None if they are incomplete."""
    columns = [as_list(find_value(stated, "classes", side, name)) for name in _CLASS_FIGURES for side in _SIDES]
    if any(len(column) != len(labels) for column in columns):
        return None
    rows = [
        [label, *(show_share(as_number(column[number])) for column in columns)] for number, label in enumerate(labels)
    ]
    head = [f"{name.capitalize()}, {side}" for name in _CLASS_FIGURES for side in _SIDES]
    return build_table(["Label", *head], rows, caption="Figures of each label")


def _build_matrix(matrix: Confusion) -> Markup:
    """Return a table whose cells are shaded by their share of the row."""
    head = element("tr", element("td"), (element("th", column, scope="col", dir="auto") for column in matrix.columns))
    body = []
    for number, (label, counts) in enumerate(zip(matrix.rows, matrix.counts, strict=True)):
        total = sum(counts) or 1
        cells = (
            element("td", f"{count:,}", class_=_choose_class(count / total, is_right=column == number))
            for column, count in enumerate(counts)
        )
        body.append(element("tr", element("th", label, scope="row", dir="auto"), cells))
    caption = element("caption", matrix.title)
    table = element("table", caption, element("thead", head), element("tbody", body), class_="confusion")
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"Confusion: {matrix.title}")


def _choose_class(share: float, *, is_right: bool) -> str:
    """Return the class of a cell: its shade, and whether it is right."""
    return f"{'right' if is_right else 'wrong'} shade-{round(share * _SHADES)}"
