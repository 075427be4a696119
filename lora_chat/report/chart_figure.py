"""A chart with its legend, switches and table."""

from collections.abc import Sequence

from lora_chat.report.chart import LAYOUTS, ChartMark, Panel, Series, draw_chart
from lora_chat.report.curves import Point, thin
from lora_chat.report.element import Markup, element, join
from lora_chat.report.section import build_folded
from lora_chat.report.show import NOTHING, build_table, show_number

_MAX_TABLE_ROWS = 120


def build_chart(panels: Sequence[Panel], marks: Sequence[ChartMark], description: str, key: str) -> Markup:
    """Return a chart: drawings for wide and narrow screens, linear and logarithmic, with a legend and a table.

    Without a script the linear drawing and the table are shown; the script adds a crosshair and switches.
    """
    panels = [panel for panel in panels if any(series.points for series in panel.series)]
    series = [curve for panel in panels for curve in panel.series if curve.points]
    has_log = any(panel.allows_log and _is_positive(panel) for panel in panels)
    drawings = [
        draw_chart(panels, marks, layout, description, is_log=is_log)
        for is_log in ((False, True) if has_log else (False,))
        for layout in LAYOUTS
    ]
    switch = element(
        "label", element("input", type="checkbox", data_log=True), " logarithmic", class_="js", hidden=True
    )
    return element(
        "figure",
        element("div", (_build_legend_entry(curve) for curve in series), switch if has_log else None, class_="legend"),
        drawings,
        element("p", class_="readout", aria_live="polite"),
        build_folded("Values as a table", _build_table(series, description)),
        class_="chart-figure",
        data_chart=key,
    )


def collect_chart_data(panels: Sequence[Panel]) -> list[dict[str, object]]:
    """Return the points of a chart for the script, which shows values under the crosshair."""
    return [
        {"key": curve.key, "label": curve.label, "points": [list(point) for point in thin(curve.points)]}
        for panel in panels
        for curve in panel.series
        if curve.points
    ]


def _is_positive(panel: Panel) -> bool:
    return all(value > 0 for series in panel.series for _, value in series.points)


def _build_legend_entry(series: Series) -> Markup:
    """Return the name of a series with its colour; the script shows a box that hides it."""
    swatch = element(
        "svg",
        element("g", element("path", d="M1,6L21,6"), class_=f"series {series.style}"),
        viewBox="0 0 22 12",
        width=22,
        height=12,
        aria_hidden="true",
    )
    box = element("input", type="checkbox", checked=True, data_toggle=series.key, class_="js", hidden=True)
    return element("label", box, swatch, element("span", series.label, dir="auto"))


def _build_table(series: Sequence[Series], caption: str) -> Markup:
    """Return the values of all series at some steps."""
    columns = [dict(_thin_evenly(curve.points)) for curve in series]
    steps = sorted({step for column in columns for step in column})
    stride = -(-len(steps) // _MAX_TABLE_ROWS) or 1
    rows = [
        [show_number(step), *(show_number(column[step]) if step in column else NOTHING for column in columns)]
        for step in steps[::stride]
    ]
    return build_table(["Step", *(curve.label for curve in series)], rows, caption=caption)


def _thin_evenly(points: tuple[Point, ...]) -> list[Point]:
    """Return some points at equal distances, and the last curve."""
    stride = -(-len(points) // _MAX_TABLE_ROWS) or 1
    return [*points[::stride], points[-1]]


def describe_change(name: str, points: tuple[Point, ...]) -> str:
    """Return a clause on the first and the last value of a curve."""
    if not points:
        return ""
    first, last = points[0][1], points[-1][1]
    return f"{name} from {show_number(first)} to {show_number(last)}"


def join_clauses(*clauses: str) -> str:
    """Return a sentence built from clauses; empty ones are left out."""
    text = ", ".join(clause for clause in clauses if clause)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def build_empty(text: str) -> Markup:
    """Return a sentence in place of a chart."""
    return join(element("p", text, class_="muted"))
