"""Confusion matrices of labels: which label each model gave for each right one."""

from dataclasses import dataclass

from lora_chat.evaluation.scores.labels import MAX_LABELS, confusion_matrix, find_labels
from lora_chat.report.collect import RunRecord
from lora_chat.report.element import Markup, element
from lora_chat.report.figures import Item, read_items
from lora_chat.report.section import Section, build_note
from lora_chat.report.values import as_object

_LABEL_METRICS = ("accuracy", "macro_f1", "macro_precision", "macro_recall")
_MAX_ITEMS = 5_000
_MAX_CHARACTERS = 300
"""Longest label or reply that is compared, in characters."""
_SHADES = 5


@dataclass(frozen=True)
class Confusion:
    """Counts of given labels by right labels."""

    title: str
    labels: tuple[str, ...]
    """Right labels."""
    counts: tuple[tuple[int, ...], ...]
    """Counts for each right label; the last column counts replies that give no label."""


def build_confusion(record: RunRecord) -> Section | None:
    """Return the confusion matrices of base and adapted model, or None without a metric of labels."""
    comparison = record.read("comparison")
    if not any(name in as_object(comparison.get("figures")) for name in _LABEL_METRICS):
        return None
    items, _ = read_items(comparison, _MAX_ITEMS)
    matrices = compute_confusion([item for item in items if not item.is_question and item.reference])
    if not matrices:
        return None
    content = element("div", map(_build_matrix, matrices), class_="pair")
    note = build_note("Rows are the right labels, columns the labels of the replies.")
    return Section("confusion", "Confusion of labels", element("div", content, note))


def compute_confusion(items: list[Item]) -> list[Confusion]:
    """Return the matrices of base and adapted model; none unless the references are a few labels."""
    references = [(item.reference or "")[:_MAX_CHARACTERS] for item in items]
    labels = find_labels(references)
    if not 2 <= len(labels) <= MAX_LABELS:
        return []
    sides = {"Base": [item.base for item in items], "Adapted": [item.adapted for item in items]}
    matrices = []
    for title, replies in sides.items():
        counts = confusion_matrix(references, [reply[:_MAX_CHARACTERS] for reply in replies], labels)
        matrices.append(Confusion(title, labels, tuple(map(tuple, counts))))
    return matrices


def _build_matrix(matrix: Confusion) -> Markup:
    """Return a table whose cells are shaded by their share of the row."""
    columns = [*matrix.labels, "(none)"]
    head = element("tr", element("td"), (element("th", column, scope="col", dir="auto") for column in columns))
    body = []
    for number, (label, counts) in enumerate(zip(matrix.labels, matrix.counts, strict=True)):
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
