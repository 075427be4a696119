"""The page of several runs: metrics, settings that differ, curves on one axis, and environments."""

from collections.abc import Callable, Mapping, Sequence

from lora_chat.report.chart import Panel, Series
from lora_chat.report.chart_figure import build_chart, collect_chart_data
from lora_chat.report.collect import RunRecord
from lora_chat.report.curves import smooth
from lora_chat.report.curves_section import CHART_KEY, find_validation_points
from lora_chat.report.document import build_document
from lora_chat.report.element import Child, Markup, element, join
from lora_chat.report.figures import Figure, MetricStyle, are_comparable, read_figures
from lora_chat.report.page import build_body
from lora_chat.report.run_differences import IGNORED_SETTINGS
from lora_chat.report.run_section import find_device
from lora_chat.report.section import Section, build_note, build_word
from lora_chat.report.show import NOTHING, build_table, cut_text, show_bytes, show_seconds, show_value
from lora_chat.report.values import as_number, as_text, find_value, flatten

_COLOURS = 8


def build_comparison_page(records: Sequence[RunRecord]) -> str:
    """Return the page that compares several runs."""
    names = name_runs(records)
    panels = _make_panels(records, names)
    sections = [
        _build_metrics(records, names),
        _build_curves(panels),
        _build_differences("settings", "Settings that differ", names, [_read_settings(r) for r in records]),
        _build_differences("environment", "Environment", names, [_read_environment(r) for r in records]),
    ]
    damage = [f"{name}: {text}" for name, r in zip(names, records, strict=True) for text in r.damage.values()]
    top = [*(build_note(cut_text(text, 500), tone="bad") for text in damage), _build_overview(records, names)]
    title = f"{len(records)} runs compared"
    body = build_body(title, "Fine-tuning report", top, [section for section in sections if section is not None])
    return build_document(title, body, {"charts": {CHART_KEY: collect_chart_data(panels)}})


def name_runs(records: Sequence[RunRecord]) -> list[str]:
    """Return a name of each run; equal ones get numbers."""
    names = [cut_text(record.name, 80) for record in records]
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _build_overview(records: Sequence[RunRecord], names: Sequence[str]) -> Markup:
    """Return verdict, time and memory of each run."""
    rows: list[list[Child]] = []
    for name, record in zip(names, records, strict=True):
        verdict, result = record.read("comparison").get("verdict"), record.read("result")
        word = as_text(find_value(verdict, "word"))
        rows.append(
            [
                name,
                build_word(cut_text(word, 60)) if word else NOTHING,
                element("div", cut_text(as_text(find_value(verdict, "text")) or NOTHING, 500), class_="sentence"),
                show_value(result.get("steps")),
                show_seconds(as_number(find_value(result, "seconds", "total"))),
                show_bytes(as_number(result.get("peak_memory_bytes"))),
            ]
        )
    return build_table(["Run", "Verdict", "", "Steps", "Time", "Peak memory"], rows, caption="Runs")


def _build_metrics(records: Sequence[RunRecord], names: Sequence[str]) -> Section | None:
    """Return the adapted value of each metric, run by run; the base is in small print."""
    figures = [{figure.style.name: figure for figure in read_figures(record.read("comparison"))} for record in records]
    metrics = list(dict.fromkeys(name for run in figures for name in run))
    if not metrics:
        return None
    rows: list[list[Child]] = []
    for metric in metrics:
        style = next(run[metric].style for run in figures if metric in run)
        measured = [figure for run in figures if (figure := run.get(metric)) is not None]
        best = _find_best(style, measured) if are_comparable(measured) else None
        label = join(style.label, None if are_comparable(measured) else element("small", "not comparable"))
        rows.append([label, *(_build_cell(run.get(metric), best) for run in figures)])
    note = build_note(
        "The best value of a row is bold; no test says whether runs differ. Values are not comparable if the base has "
        "other values, because the runs were then measured on other data, or have another base."
    )
    table = build_table(["Metric", *names], rows, caption="Adapted model, with the base in small print")
    return Section("metrics", "Metrics", join(table, note))


def _find_best(style: MetricStyle, figures: Sequence[Figure]) -> float | None:
    """Return the best adapted value of a metric, or None if all are equal."""
    values = [figure.adapted for figure in figures]
    if len(set(values)) < 2:
        return None
    return min(values) if style.lower_is_better else max(values)


def _build_cell(figure: Figure | None, best: float | None) -> Markup | str:
    """Return the value of the adapted model with its interval, and the base."""
    if figure is None:
        return NOTHING
    style = figure.style
    value = style.show(figure.adapted)
    interval = style.show_interval(figure.adapted_interval)
    return join(
        element("strong", value) if figure.adapted == best else value,
        element("small", interval) if interval else None,
        element("small", f"base {style.show(figure.base)}"),
        build_word(figure.word) if figure.word else None,
    )


def _make_panels(records: Sequence[RunRecord], names: Sequence[str]) -> list[Panel]:
    """Return training and validation losses of all runs."""
    training, validation = [], []
    for i, (name, record) in enumerate(zip(names, records, strict=True)):
        style = f"run-{i % _COLOURS}{' dashed' if i >= _COLOURS else ''}"
        losses = record.curves.find("loss")
        training.append(Series(f"training-{i}", f"{name}, training", style, smooth(losses) or losses))
        points = find_validation_points(record)
        validation.append(Series(f"validation-{i}", f"{name}, validation", style, points, has_dots=True))
    panels = [
        Panel("training loss, smoothed (nats per supervised token)", tuple(training), 200, allows_log=True),
        Panel("validation loss", tuple(validation), 200, allows_log=True),
    ]
    return [panel for panel in panels if any(series.points for series in panel.series)]


def _build_curves(panels: Sequence[Panel]) -> Section | None:
    """Return the curves of all runs on one axis."""
    if not panels:
        return None
    chart = build_chart(panels, [], "Training and validation losses of all runs", CHART_KEY)
    return Section(CHART_KEY, "Curves", chart)


def _read_settings(record: RunRecord) -> Mapping[str, object]:
    settings = flatten(record.read("plan"))
    return {key: value for key, value in settings.items() if key not in IGNORED_SETTINGS}


def _read_environment(record: RunRecord) -> Mapping[str, object]:
    return {**record.read("versions"), "device": find_device(record)}


def _build_differences(key: str, title: str, names: Sequence[str], runs: Sequence[Mapping[str, object]]) -> Section:
    """Return the values that are not equal in all runs."""
    show: Callable[[Mapping[str, object], str], str] = lambda run, name: (  # noqa: E731
        cut_text(show_value(run[name]), 300) if name in run else "not set"
    )
    keys = list(dict.fromkeys(name for run in runs for name in run))
    rows = [[cut_text(name, 100), *cells] for name in keys if len(set(cells := [show(run, name) for run in runs])) > 1]
    if not rows:
        return Section(key, title, build_note("All are equal."))
    return Section(key, title, build_table(["", *names], rows[:500], caption=title))
