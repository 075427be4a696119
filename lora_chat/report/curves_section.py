"""The curves of a run: losses and learning rate."""

from collections.abc import Mapping

from lora_chat.report.chart import ChartMark, Panel, Series
from lora_chat.report.chart_figure import build_chart, collect_chart_data, describe_change, join_clauses
from lora_chat.report.collect import RunRecord
from lora_chat.report.curves import Point, smooth
from lora_chat.report.element import join
from lora_chat.report.section import Section, build_note
from lora_chat.report.values import as_count, as_number, as_object, as_text

CHART_KEY = "curves"


def make_panels(record: RunRecord) -> list[Panel]:
    """Return the panels of the curves that a run has."""
    curves = record.curves
    training = curves.find("loss")
    losses = [
        Series("loss", "training loss, each step", "training", training),
        Series("smooth", "training loss, smoothed", "smoothed", smooth(training)),
        Series("validation_loss", "validation loss", "validation", find_validation_points(record), has_dots=True),
    ]
    panels = [
        Panel("loss (nats per supervised token)", tuple(s for s in losses if s.points), 230, allows_log=True),
        Panel("learning rate", (Series("learning_rate", "learning rate", "rate", curves.find("learning_rate")),), 60),
    ]
    return [panel for panel in panels if any(series.points for series in panel.series)]


def find_validation_points(record: RunRecord) -> tuple[Point, ...]:
    """Return the validation losses in training, after the loss of the base and before the loss of the adapted model."""
    points = record.curves.find("validation_loss")
    comparison = record.read("comparison")
    if as_text(comparison.get("set")) not in (None, "validation"):
        return points
    stated = as_object(as_object(comparison.get("figures")).get("validation_loss") or comparison.get("validation_loss"))
    base, adapted = as_number(stated.get("base")), as_number(stated.get("adapted"))
    steps = {int(step) for step, _ in points}
    if base is not None and 0 not in steps:
        points = ((0.0, base), *points)
    last = record.curves.last_step
    if adapted is not None and last and last not in steps and find_kept_step(record) in (None, last):
        points = (*points, (float(last), adapted))
    return points


def find_kept_step(record: RunRecord) -> int | None:
    """Return the step whose adapter was kept, or None if the run does not say."""
    return as_count(record.read("result").get("kept_step"))


def build_curves(record: RunRecord) -> Section | None:
    """Return the section of the curves, or None for a run without metrics."""
    panels = make_panels(record)
    if not panels:
        return None
    kept_step = find_kept_step(record)
    marks = []
    if kept_step is not None and kept_step <= record.curves.last_step:
        marks.append(ChartMark(kept_step, f"kept: step {kept_step:,}"))
    description = join_clauses(
        describe_change("training loss", record.curves.find("loss")),
        describe_change("validation loss", find_validation_points(record)),
        f"{record.curves.last_step:,} optimizer steps",
    )
    note = build_note(record.curves.note, tone="warn") if record.curves.note else None
    reason = _find_kept_reason(record.read("result"))
    chart = build_chart(panels, marks, description, CHART_KEY)
    return Section(
        CHART_KEY, "Curves", join(build_note(description), chart, build_note(reason) if reason else None, note)
    )


def collect_curve_data(record: RunRecord) -> list[dict[str, object]]:
    """Return the points of the curves for the script."""
    return collect_chart_data(make_panels(record))


def _find_kept_reason(result: Mapping[str, object]) -> str | None:
    """Return the sentence on which step was kept and why, if the run has one."""
    reason, step = as_text(result.get("kept_because")), as_count(result.get("kept_step"))
    return f"Step {step:,} was kept, because {reason[:1_000]}." if reason and step is not None else None
