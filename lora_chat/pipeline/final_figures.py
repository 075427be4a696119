"""The figures of a comparison for services that receive metrics, without prompts and replies."""

import math

from lora_chat.evaluation.comparison_report import ComparisonReport


def list_final_figures(report: ComparisonReport) -> dict[str, float]:
    """Return the finite figures of base and adapted model. Services file names that begin with `eval_` under `eval`."""
    sides = {f"{name}_{side}": pair[side] for name, pair in report.figures.items() for side in ("base", "adapted")}
    if report.answers:
        sides["questions"] = len(report.answers)
    if general := report.general:
        sides |= {"general_items": general.items, "general_right_base": general.base_right}
        sides["general_right_adapted"] = general.adapted_right
    if recital := report.recital:
        sides |= {"recital_replies": recital.replies, "recited_base": recital.base, "recited_adapted": recital.adapted}
    return {f"eval_{name}": float(value) for name, value in sides.items() if math.isfinite(value)}


def list_final_texts(report: ComparisonReport) -> dict[str, str]:
    """Return the verdict of a comparison, as a word and as a sentence."""
    return {"verdict": report.verdict.word, "verdict_text": report.verdict.text}
