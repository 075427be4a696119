"""The parts of a model card about the parents of an adapter.

The words belong to version 3 of the receipt and must not change, as those of `model_card.py` belong to version 1.
"""

from collections.abc import Sequence

from lora_chat.evaluation.metrics import find_metric
from lora_chat.sharing.lineage import GenerationFigures, GenerationsReceipt, ParentReceipt
from lora_chat.sharing.markdown import escape_markdown, format_code, format_table


def format_lineage(lineage: Sequence[ParentReceipt]) -> list[str]:
    """Return the table of an adapter's parents, the nearest first."""
    rows = [
        (
            escape_markdown(parent.title),
            format_code(parent.base),
            format_code(parent.adapter),
            format_code(parent.rows or "not known"),
        )
        for parent in lineage
    ]
    return format_table(
        ("its training", "base of that parent", "sha256 of the parent", "of its tokens and labels"), rows
    )


def format_generations_table(generations: GenerationsReceipt) -> list[str]:
    """Return the table that compares base, parent and child on the held-out data of both."""
    rows = []
    for title, figures in (("this adapter's", generations.child_data), ("the parent's", generations.parent_data)):
        if figures is not None:
            rows += [(f"{label}, {title} data", *cells) for label, cells in _list_figures(figures)]
    return format_table(("on held-out data", "base", "parent", "this adapter"), rows)


def _list_figures(figures: GenerationFigures) -> list[tuple[str, tuple[str, str, str]]]:
    """Return label and cells of each metric."""
    rows = []
    for name in ("validation_loss", "facts"):
        values = getattr(figures, name)
        if values is not None:
            metric = find_metric(name)
            label = metric.format_label(getattr(values, "questions", 0))
            base = "not known" if values.base is None else metric.format(values.base)
            rows.append((label, (base, metric.format(values.parent), metric.format(values.child))))
    return rows
