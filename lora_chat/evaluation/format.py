"""A comparison as text for the terminal: aligned and readable without color."""

import textwrap

from lora_chat.evaluation.comparison import ComparisonReport
from lora_chat.evaluation.metrics import METRICS


def format_comparison(report: ComparisonReport) -> str:
    """Format the metrics and sample replies of base and adapted model."""
    if not report.figures:
        return "Nothing was compared with the base: there is no validation set (data.validation_share: 0)."
    rows = [("", "base", "adapted")]
    for metric in METRICS:
        if pair := report.figures.get(metric.name):
            label = metric.format_label(pair.get("questions", 0))
            rows.append((label, metric.format(pair["base"]), metric.format(pair["adapted"])))
    width = max(len(label) for label, _, _ in rows)
    lines = [f"{label:<{width}}  {base:>10}  {adapted:>10}" for label, base, adapted in rows]
    for sample in report.samples:
        lines.append("")
        lines += _wrap_labeled("prompt", sample.prompt)
        lines += _wrap_labeled("base", sample.base)
        lines += _wrap_labeled("adapted", sample.adapted)
    return "\n".join(lines)


def _wrap_labeled(label: str, text: str) -> list[str]:
    """Wrap a text to at most four lines beside its label."""
    body = textwrap.wrap(" ".join(text.split()) or "(nothing)", 88)
    if len(body) > 4:
        body = [*body[:4], "..."]
    return [f"{label:>8} | {body[0]}", *(f"{'':>8} | {line}" for line in body[1:])]
