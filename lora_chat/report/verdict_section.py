"""The verdict, and the metrics with their 95 % intervals."""

from collections.abc import Mapping

from lora_chat.report.chart_scale import Scale
from lora_chat.report.collect import RunRecord
from lora_chat.report.element import Markup, element, join
from lora_chat.report.figures import Figure, Interval, read_figures
from lora_chat.report.section import TONES, Section, build_note, build_word
from lora_chat.report.show import NOTHING, build_table, cut_text
from lora_chat.report.values import as_count, as_list, as_number, as_object, as_text, find_value

_SETS = {
    "test": "the test set, which neither training nor the choice of a checkpoint saw",
    "validation": "the validation set, which training does not see",
    "given": "data that was given to the evaluation",
}
_USED_TWICE = "The set also chose the checkpoint, so its figures look better than those of new data."
_MAX_TEXT = 2_000


def build_verdict(record: RunRecord) -> Markup:
    """Return the verdict in one word and one sentence, at the top of the page."""
    comparison = record.read("comparison")
    verdict = as_object(comparison.get("verdict"))
    word = as_text(verdict.get("word"))
    if word is None:
        word, sentence = _explain_missing_verdict(record)
    else:
        sentence = cut_text(as_text(verdict.get("text")) or "", _MAX_TEXT)
    return element(
        "div",
        element("p", cut_text(word, 60).capitalize(), class_="big"),
        element("p", sentence, dir="auto") if sentence else None,
        element("p", describe_set(comparison), class_="muted") if comparison else None,
        class_=f"verdict {TONES.get(word, 'neutral')}",
        role="status",
    )


def describe_set(comparison: Mapping[str, object]) -> str:
    """Return a sentence on the items that were measured."""
    name = as_text(comparison.get("set")) or "validation"
    counts = []
    if dialogues := as_count(comparison.get("validation_dialogues")):
        counts.append(f"{dialogues:,} {'dialogue' if dialogues == 1 else 'dialogues'}")
    if questions := as_count(comparison.get("questions")) or len(as_list(comparison.get("answers"))):
        counts.append(f"{questions:,} {'question' if questions == 1 else 'questions'}")
    measured = f"Measured on {_SETS.get(name, cut_text(name, 60))}"
    sentence = f"{measured}: {', '.join(counts)}." if counts else f"{measured}."
    return f"{sentence} {_USED_TWICE}" if comparison.get("used_twice") is True else sentence


def _explain_missing_verdict(record: RunRecord) -> tuple[str, str]:
    """Return a word and a sentence for a run without a verdict."""
    figures = read_figures(record.read("comparison"))
    if not figures:
        return "not measured", "This run has no comparison of base and adapted model. Fix: lora-chat eval RUN"
    changes = ", ".join(f"{f.style.label} {f.style.show(f.base)} → {f.style.show(f.adapted)}" for f in figures)
    return (
        "no verdict",
        f"{changes[:1].upper()}{changes[1:]}. An earlier version measured this run without intervals. "
        "Fix: lora-chat eval RUN",
    )


def build_metrics(record: RunRecord) -> Section | None:
    """Return the table of metrics."""
    figures = read_figures(record.read("comparison"))
    if not figures:
        return None
    decisive = as_text(find_value(record.read("comparison"), "verdict", "metric"))
    table = build_table(
        ["Metric", "Verdict", "Base", "Adapted", "Base and adapted", "Difference", "p", "Items"],
        [_build_row(figure, is_decisive=figure.style.name == decisive) for figure in figures],
        caption="Metrics of base and adapted model",
        class_="metrics",
    )
    has_intervals = any(figure.difference_interval for figure in figures)
    note = (
        "Small print: 95 % intervals. ↓ lower is better, ↑ higher is better. The difference is adapted minus base."
        if has_intervals
        else "↓ lower is better, ↑ higher is better. This comparison has no intervals."
    )
    reason = as_text(record.read("comparison").get("metrics"))
    chosen = build_note(cut_text(reason, _MAX_TEXT)) if reason else None
    return Section("metrics", "Metrics", join(chosen, table, build_note(note), _build_control(record)))


def _build_control(record: RunRecord) -> Markup | None:
    """Return a sentence on whether replies depend on their prompts, if that was measured."""
    control = as_object(record.read("comparison").get("control"))
    own, other = as_number(control.get("own")), as_number(control.get("other"))
    if own is None or other is None:
        return None
    is_shown = control.get("depends_on_prompt") is True
    sentence = "depend on their prompts" if is_shown else "are not shown to depend on their prompts"
    return build_note(
        f"The replies {sentence}: their loss is {own:.3f} after their own prompts, and {other:.3f} after others.",
        tone="neutral" if is_shown else "warn",
    )


def _build_row(figure: Figure, *, is_decisive: bool) -> list[Markup | str]:
    """Return the cells of a metric."""
    style = figure.style
    arrow = element("span", "↓" if style.lower_is_better else "↑", class_="muted", aria_hidden="true")
    label = join(style.label, "\u00a0", arrow, element("span", " decides", class_="tag") if is_decisive else None)
    word: Markup | str = build_word(figure.word) if figure.word else NOTHING
    if figure.needed_items and figure.word == "no difference shown":
        word = join(word, element("small", f"needs about {figure.needed_items:,} items"))
    return [
        label,
        word,
        _build_value(style.show(figure.base), style.show_interval(figure.base_interval)),
        _build_value(style.show(figure.adapted), style.show_interval(figure.adapted_interval)),
        _draw_whiskers(figure),
        _build_value(
            style.show_difference(figure.difference), style.show_interval(figure.difference_interval, signed=True)
        ),
        _show_p_value(figure.p_value),
        f"{figure.items:,}" if figure.items else NOTHING,
    ]


def _build_value(value: str, interval: str) -> Markup:
    """Return a value above its interval."""
    return join(element("span", value, class_="value"), element("small", interval) if interval else None)


def _show_p_value(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _draw_whiskers(figure: Figure) -> Markup | str:
    """Return a small drawing of both values with their intervals on one axis."""
    if figure.base_interval is None or figure.adapted_interval is None:
        return NOTHING
    values = [*figure.base_interval, *figure.adapted_interval, figure.base, figure.adapted]
    low, high = min(values), max(values)
    space = (high - low) * 0.06 or 1.0
    scale = Scale(low - space, high + space, 4, 136)
    rows: list[tuple[str, float, Interval, float]] = [
        ("base", figure.base, figure.base_interval, 9.0),
        ("adapted", figure.adapted, figure.adapted_interval, 23.0),
    ]
    parts = [
        element(
            "g",
            element("line", x1=scale.map(interval[0]), x2=scale.map(interval[1]), y1=y, y2=y),
            element("circle", cx=scale.map(value), cy=y, r=4.0),
            class_=f"whisker {name}",
        )
        for name, value, interval, y in rows
    ]
    return element("svg", parts, class_="whiskers", viewBox="0 0 140 32", width=140, height=32, aria_hidden="true")
