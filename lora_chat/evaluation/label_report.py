"""Precision, recall and F1 of each label, and the confusion matrix, of base and adapted model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from lora_chat.evaluation.measurement import Measurement
from lora_chat.evaluation.reply_scores import read_labels, score_label_classes
from lora_chat.evaluation.scores.labels import class_f1, class_precision, class_recall, confusion_matrix

OTHER = "(other)"
"""Column of replies that give none of the labels."""
_MAX_SHOWN = 12
"""Most labels in the text for the terminal."""


@dataclass(frozen=True)
class ClassFigures:
    """Figures of each label for one model, in the order of the labels."""

    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]


@dataclass(frozen=True)
class LabelReport:
    """Labels of the references, and which label each model gave for each."""

    labels: tuple[str, ...]
    """Labels in the normal form of answers, which are the rows of the matrices."""
    columns: tuple[str, ...]
    """Labels of the replies, and last all other replies."""
    base: Sequence[Sequence[int]]
    """Confusion matrix (labels, columns) of the base."""
    adapted: Sequence[Sequence[int]]
    classes: dict[str, ClassFigures]
    """Figures of each label by `base` and `adapted`."""

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON."""
        return asdict(self)

    def format_lines(self) -> list[str]:
        """Return F1 and number of references of each label as lines of text; none if there are many labels."""
        if len(self.labels) > _MAX_SHOWN:
            return []
        width = max(len("F1 of each label"), *(len(label) for label in self.labels))
        lines = ["", f"{'F1 of each label':<{width}}  {'base':>10}  {'adapted':>10}  references"]
        rows = zip(self.labels, self.classes["base"].f1, self.classes["adapted"].f1, self.base, strict=True)
        return [*lines, *(f"{label:<{width}}  {b:>10.1%}  {a:>10.1%}  {sum(row)}" for label, b, a, row in rows)]


def report_labels(base: Measurement, adapted: Measurement) -> LabelReport | None:
    """Return the report for replies that are labels; None for other replies."""
    labels = read_labels(base.items)
    if labels is None:
        return None
    matrices, classes = [], {}
    for name, measured in (("base", base), ("adapted", adapted)):
        pairs = [
            (item.reference, reply.content)
            for item, reply in zip(measured.items, measured.replies, strict=True)
            if not item.calls
        ]
        matrices.append(confusion_matrix([pair[0] for pair in pairs], [pair[1] for pair in pairs], labels))
        statistics = score_label_classes(measured)
        totals = np.zeros(3 * len(labels)) if statistics is None else statistics.sum(axis=0)
        figures = (tuple(figure(totals).tolist()) for figure in (class_precision, class_recall, class_f1))
        classes[name] = ClassFigures(*figures)
    return LabelReport(labels, (*labels, OTHER), matrices[0], matrices[1], classes)
