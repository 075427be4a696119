"""Confusion matrices of labels: which label each model gave for each right one."""

from collections.abc import Mapping
from dataclasses import dataclass

from lora_chat.report.collect import RunRecord
from lora_chat.report.element import Markup, element
from lora_chat.report.section import Section
from lora_chat.report.show import cut_text
from lora_chat.report.values import as_count, as_list, as_object

_MAX_LABELS = 40
_SHADES = 5


@dataclass(frozen=True)
class Confusion:
    """Counts of given labels by right labels."""

    title: str
    rows: tuple[str, ...]
    """Right labels."""
    columns: tuple[str, ...]
    """Given labels."""
    counts: tuple[tuple[int, ...], ...]


def build_confusion(record: RunRecord) -> Section | None:
    """Return the confusion matrices of base and adapted model, or None without labels."""
    stated = as_object(record.read("comparison").get("confusion"))
    matrices = [
        matrix
        for side in ("base", "adapted")
        if (matrix := read_confusion(stated, side, f"{side.capitalize()}: rows are right labels, columns are replies"))
    ]
    if not matrices:
        return None
    return Section("confusion", "Confusion of labels", element("div", map(_build_matrix, matrices), class_="pair"))


def read_confusion(stated: Mapping[str, object], side: str, title: str) -> Confusion | None:
    """Return the matrix of one model; None unless it is complete.

    It is a list of rows for `labels`, or an object with `labels`, `columns` and `counts`.
    """
    value = stated.get(side)
    own = as_object(value)
    labels = _read_labels(own.get("labels")) or _read_labels(stated.get("labels"))
    columns = _read_labels(own.get("columns")) or _read_labels(stated.get("columns")) or labels
    table = [[as_count(cell) for cell in as_list(row)] for row in as_list(own.get("counts")) or as_list(value)]
    counts = tuple(tuple(cell for cell in row if cell is not None) for row in table)
    if not labels or len(counts) != len(labels) or any(len(row) != len(columns) for row in counts):
        return None
    return Confusion(title, labels, columns, counts)


def _read_labels(value: object) -> tuple[str, ...]:
    return tuple(cut_text(str(label), 60) for label in as_list(value)[:_MAX_LABELS] if isinstance(label, str | int))


def _build_matrix(matrix: Confusion) -> Markup:
    """Return a table whose cells are shaded by their share of the row."""
    head = element("tr", element("td"), (element("th", column, scope="col", dir="auto") for column in matrix.columns))
    body = []
    for label, counts in zip(matrix.rows, matrix.counts, strict=True):
        total = sum(counts) or 1
        cells = (
            element("td", f"{count:,}", class_=_choose_class(count / total, is_right=label == column))
            for column, count in zip(matrix.columns, counts, strict=True)
        )
        body.append(element("tr", element("th", label, scope="row", dir="auto"), cells))
    table = element(
        "table",
        element("caption", matrix.title),
        element("thead", head),
        element("tbody", body),
        class_="confusion",
    )
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=matrix.title)


def _choose_class(share: float, *, is_right: bool) -> str:
    """Return the class of a cell: its shade, and whether it is right."""
    return f"{'right' if is_right else 'wrong'} shade-{round(share * _SHADES)}"
