"""A comparison as text for the terminal: aligned and readable without color."""

import textwrap

from lora_chat.evaluation.comparison_report import ComparisonReport
from lora_chat.evaluation.general.report import format_general
from lora_chat.evaluation.metrics import find_metric
from lora_chat.evaluation.verdict import format_change, format_difference


def format_comparison(report: ComparisonReport) -> str:
    """Format the metrics and sample replies of base and adapted model."""
    general = format_general(report.general) if report.general else []
    if not report.figures:
        return "\n".join([*textwrap.wrap(f"Verdict: {report.verdict.text}", 100), *general])
    rows = [("", "base", "adapted", "difference")]
    for metric in report.metrics:
        if pair := report.figures.get(metric.name):
            label = metric.format_label(pair.get("questions", 0))
            rows.append(
                (label, metric.format(pair["base"]), metric.format(pair["adapted"]), format_change(metric, pair))
            )
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:<{width}}  {row[1]:>10}  {row[2]:>10}  {row[3]}".rstrip() for row in rows]
    if report.evaluated_set == "test":
        lines.append(f"{'measured on':<{width}}  the test set, {report.validation_dialogues:,} dialogues")
    lines += report.labels.format_lines() if report.labels else []
    lines += ["", *textwrap.wrap(f"Verdict: {report.verdict.text}", 100)]
    if report.overlap:
        lines += report.overlap.format_examples()
    if report.overlap and report.unseen_figures:
        change = format_difference(find_metric("validation_loss"), report.unseen_figures)
        lines.append(f"On the {report.overlap.unseen:,} unseen dialogues: {change}")
    lines += general
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
