"""Line charts as SVG, drawn without any library."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_chat.report.chart_scale import Scale, fit_scale, format_tick
from lora_chat.report.curves import Point, thin
from lora_chat.report.element import Markup, element

_RIGHT, _TOP, _GAP, _BOTTOM = 14.0, 10.0, 34.0, 38.0
"""Space at the right, at the top, between panels and at the bottom, in units of the drawing."""


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    key: str
    label: str
    style: str
    """Class of the style sheet that decides colour and stroke."""
    points: tuple[Point, ...]
    has_dots: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines with one vertical axis."""

    label: str
    series: tuple[Series, ...]
    height: float
    allows_log: bool = False


@dataclass(frozen=True)
class ChartMark:
    """A vertical line at a step."""

    step: float
    label: str


@dataclass(frozen=True)
class Layout:
    """The size of a drawing."""

    name: str
    """Class of the style sheet that shows the drawing on screens of a width."""
    width: float
    left: float
    ticks: int


LAYOUTS = (Layout("wide", 920, 64, 8), Layout("narrow", 380, 52, 4))


def draw_chart(
    panels: Sequence[Panel], marks: Sequence[ChartMark], layout: Layout, description: str, *, is_log: bool
) -> Markup:
    """Return the drawing of panels that share their horizontal axis, the step."""
    steps = [step for panel in panels for series in panel.series for step, _ in series.points]
    across = Scale(min(steps), max(steps), layout.left, layout.width - _RIGHT)
    parts: list[Markup] = []
    top = _TOP
    for panel in panels:
        parts += _draw_panel(panel, marks, layout, across, top, is_log=is_log and panel.allows_log)
        top += panel.height + _GAP
    height = top - _GAP + _BOTTOM
    parts += _draw_step_axis(across, layout, height)
    parts.append(element("line", class_="crosshair", x1=0, x2=0, y1=_TOP, y2=height - _BOTTOM, visibility="hidden"))
    return element(
        "svg",
        parts,
        class_=f"chart {layout.name} {'log' if is_log else 'linear'}",
        viewBox=f"0 0 {layout.width:g} {height:g}",
        role="img",
        tabindex=0,
        aria_label=description,
        data_low=repr(across.low),
        data_high=repr(across.high),
        data_left=across.start,
        data_right=across.end,
        data_width=layout.width,
    )


def _draw_panel(
    panel: Panel, marks: Sequence[ChartMark], layout: Layout, across: Scale, top: float, *, is_log: bool
) -> list[Markup]:
    """Return grid, lines and labels of one panel."""
    values = [value for series in panel.series for _, value in series.points]
    up = fit_scale(values, top + panel.height, top, is_log=is_log)
    right = layout.width - _RIGHT
    parts = [element("text", panel.label, class_="axis-title", x=layout.left, y=top - 2 if top > _TOP else top + 2)]
    for tick in up.choose_ticks(5 if panel.height > 120 else 2):
        y = up.map(tick)
        parts.append(element("line", class_="grid", x1=layout.left, x2=right, y1=y, y2=y))
        parts.append(element("text", format_tick(tick), class_="tick", x=layout.left - 6, y=y + 4, text_anchor="end"))
    for mark in marks:
        x = across.map(mark.step)
        parts.append(element("line", class_="mark", x1=x, x2=x, y1=top, y2=top + panel.height))
        if panel.allows_log:
            is_right = x > (layout.left + right) / 2
            anchor, shift = ("end", -5) if is_right else ("start", 5)
            label = element("text", mark.label, class_="mark-label", x=x + shift, y=top + 14, text_anchor=anchor)
            parts.append(label)
    return [*parts, *(_draw_series(series, across, up) for series in panel.series if series.points)]


def _draw_series(series: Series, across: Scale, up: Scale) -> Markup:
    """Return a line, with dots if it has few points."""
    points = [(across.map(step), up.map(value)) for step, value in thin(series.points)]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    has_dots = len(points) < 3 or (series.has_dots and len(points) <= 60)
    dots = [element("circle", cx=x, cy=y, r=3.0) for x, y in points] if has_dots else []
    return element("g", element("path", d=path), dots, class_=f"series {series.style}", data_series=series.key)


def _draw_step_axis(across: Scale, layout: Layout, height: float) -> list[Markup]:
    """Return the labels of the steps."""
    y = height - _BOTTOM
    parts = [element("line", class_="axis", x1=across.start, x2=across.end, y1=y, y2=y)]
    ticks = sorted({round(tick) for tick in across.choose_ticks(layout.ticks)})
    for tick in ticks:
        if across.low <= tick <= across.high:
            x = across.map(tick)
            parts.append(element("line", class_="axis", x1=x, x2=x, y1=y, y2=y + 4))
            parts.append(element("text", format_tick(tick), class_="tick", x=x, y=y + 17, text_anchor="middle"))
    middle = (across.start + across.end) / 2
    parts.append(element("text", "optimizer step", class_="axis-title", x=middle, y=height - 4, text_anchor="middle"))
    return parts
