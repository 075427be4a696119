"""How results look: plain text on a stream, aligned, readable without colour."""

import textwrap
from typing import Any

from lora_chat.evaluation.comparison import ComparisonReport
from lora_chat.system.console import format_bytes


def format_comparison(report: ComparisonReport) -> str:
    """Base and adapted side by side."""
    rows = [
        ("", "base", "adapted"),
        ("validation loss", f"{report.validation_loss.base:.3f}", f"{report.validation_loss.adapted:.3f}"),
        ("perplexity", _format_perplexity(report.perplexity.base), _format_perplexity(report.perplexity.adapted)),
    ]
    if report.facts:
        rows.append(
            (f"right of {report.questions} questions", f"{report.facts.base:.0%}", f"{report.facts.adapted:.0%}")
        )
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:<{width}}  {base:>10}  {adapted:>10}" for name, base, adapted in rows]
    for sample in report.samples:
        lines.append("")
        lines += _wrap_labeled("prompt", sample.prompt)
        lines += _wrap_labeled("base", sample.base)
        lines += _wrap_labeled("adapted", sample.adapted)
    return "\n".join(lines)


def _format_perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1e6 else f"{value:.2e}"


def _wrap_labeled(label: str, text: str) -> list[str]:
    body = textwrap.wrap(" ".join(text.split()) or "(nothing)", 88)
    if len(body) > 4:
        body = [*body[:4], "..."]
    return [f"{label:>8} | {body[0]}", *(f"{'':>8} | {line}" for line in body[1:])]


def format_result(result: dict[str, Any]) -> str:
    """The closing lines of `sft`."""
    seconds = result["seconds"]
    return (
        f"{result['trainable_parameters']:,} parameters trained in {seconds['train']:.0f} s "
        f"({seconds['total']:.0f} s in all), peak memory {format_bytes(result['peak_memory_bytes'])}, "
        f"adapter {format_bytes(result['adapter_bytes'])}"
    )
