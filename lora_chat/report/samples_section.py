"""Replies of base and adapted model side by side, with search and filters."""

from collections.abc import Sequence

from lora_chat.report.collect import RunRecord
from lora_chat.report.element import Markup, element, join
from lora_chat.report.figures import Item, MetricStyle, find_style, read_items
from lora_chat.report.section import Section, build_folded, build_note, build_plain_text
from lora_chat.report.show import cut_text, show_number
from lora_chat.report.values import as_text, find_value

_MAX_ITEMS = 300
_MAX_CHARACTERS = 8_000
"""Longest text of an item on the page."""
_MAX_TOTAL_CHARACTERS = 4_000_000
"""Largest number of characters of all items on the page."""
CHANGES = {
    "fixed": ("fixed", "good"),
    "broken": ("broken", "bad"),
    "right": ("both right", "neutral"),
    "wrong": ("both wrong", "neutral"),
    "better": ("better", "good"),
    "worse": ("worse", "bad"),
    "same": ("same", "neutral"),
}
"""Label and tone of each kind of change between base and adapted model."""


def build_samples(record: RunRecord) -> Section | None:
    """Return the replies side by side, or None for a run without replies."""
    items, total = select_items(record)
    if not items:
        return None
    style = choose_style(record, items)
    shown = f"{len(items):,} of {total:,}" if len(items) < total else f"{total:,}"
    content = join(
        _build_controls(find_styles(items), style),
        element("p", f"{shown} prompts", class_="muted", id="sample-count", aria_live="polite"),
        element("div", (_build_item(i, item, style) for i, item in enumerate(items)), id="samples"),
        element("button", "Show more", type="button", id="sample-more", hidden=True),
        build_note(f"The others are in comparison.json: {total - len(items):,}.") if len(items) < total else None,
    )
    return Section("replies", "Replies side by side", content)


def select_items(record: RunRecord) -> tuple[list[Item], int]:
    """Return the items on the page, and the number of all items of the run."""
    items, total = read_items(record.read("comparison"), _MAX_ITEMS)
    selected, characters = [], 0
    for item in items:
        texts = (item.prompt, item.reference or "", item.base, item.adapted)
        characters += sum(min(len(text), _MAX_CHARACTERS) for text in texts)
        if characters > _MAX_TOTAL_CHARACTERS:
            break
        selected.append(item)
    return selected, total


def find_styles(items: Sequence[Item]) -> list[MetricStyle]:
    """Return the metrics that the items have scores of."""
    names = dict.fromkeys(name for item in items for name in item.scores)
    questions = sum(item.is_question for item in items)
    return [find_style(name, questions) for name in names]


def choose_style(record: RunRecord, items: Sequence[Item]) -> MetricStyle | None:
    """Return the metric whose changes are shown first: the decisive one, or the one with most scores."""
    styles = find_styles(items)
    decisive = as_text(find_value(record.read("comparison"), "verdict", "metric"))
    counts = {style.name: sum(style.name in item.scores for item in items) for style in styles}
    return max(styles, key=lambda s: (s.name == decisive, counts[s.name], s.is_right_or_wrong), default=None)


def find_change(item: Item, style: MetricStyle | None) -> str | None:
    """Return the kind of change of an item by a metric, a key of `CHANGES`; None without a score."""
    if style is None or style.name not in item.scores:
        return None
    base, adapted = item.scores[style.name]
    if style.is_right_or_wrong:
        pairs = {(False, True): "fixed", (True, False): "broken", (True, True): "right", (False, False): "wrong"}
        return pairs[base > 0.5, adapted > 0.5]
    if base == adapted:
        return "same"
    return "better" if (adapted < base) == style.lower_is_better else "worse"


def collect_sample_data(record: RunRecord) -> dict[str, object]:
    """Return scores and metrics of the items for the script."""
    items, _ = select_items(record)
    styles = find_styles(items)
    return {
        "metrics": {
            style.name: {"lower": style.lower_is_better, "binary": style.is_right_or_wrong} for style in styles
        },
        "changes": {key: {"label": label, "tone": tone} for key, (label, tone) in CHANGES.items()},
        "scores": [{name: list(pair) for name, pair in item.scores.items()} for item in items],
    }


def _build_controls(styles: Sequence[MetricStyle], chosen: MetricStyle | None) -> Markup:
    """Return search box and filters, which the script shows."""
    search = element(
        "label", "Search ", element("input", type="search", id="sample-search", autocomplete="off", spellcheck="false")
    )
    options = (
        element("option", style.label, value=style.name, selected=chosen is not None and style.name == chosen.name)
        for style in styles
    )
    metric = element("label", "Metric ", element("select", options, id="sample-metric")) if styles else None
    kinds = (element("option", label, value=key, hidden=True, disabled=True) for key, (label, _) in CHANGES.items())
    change = element(
        "label",
        "Change ",
        element("select", element("option", "all", value=""), kinds, id="sample-change"),
    )
    return element("div", search, metric, change if styles else None, class_="controls js", hidden=True)


def _build_item(number: int, item: Item, style: MetricStyle | None) -> Markup:
    """Return the prompt, the reference and both replies of an item."""
    change = find_change(item, style)
    label, tone = CHANGES[change] if change else ("", "neutral")
    scores = [
        f"{find_style(name).label}: {show_number(base)} → {show_number(adapted)}"
        for name, (base, adapted) in item.scores.items()
        if name != "facts"
    ]
    return element(
        "article",
        element(
            "header",
            element("span", f"{number + 1}", class_="number"),
            element("span", label, class_=f"word {tone} change", hidden=not label),
            element("span", "; ".join(scores), class_="muted scores") if scores else None,
        ),
        element(
            "div",
            element("div", element("h4", "Question" if item.is_question else "Prompt"), _show(item.prompt)),
            _build_reference(item),
            class_="pair asked",
        ),
        element(
            "div",
            element("div", element("h4", "Base"), _show(item.base), class_="reply base"),
            element("div", element("h4", "Adapted"), _show(item.adapted), class_="reply adapted"),
            class_="pair",
        ),
        class_="sample",
        data_item=number,
    )


def _build_reference(item: Item) -> Markup | None:
    """Return the reply of the dialogue itself, folded if it is long."""
    if item.reference is None:
        return None
    if len(item.reference) > 300:
        return build_folded("Reference", _show(item.reference))
    return element("div", element("h4", "Reference"), _show(item.reference))


def _show(text: str) -> Markup:
    return build_plain_text(cut_text(text, _MAX_CHARACTERS))
