"""Other abilities than the task: the general set, memorized replies, overlap, and base beside parent and child."""

from lora_chat.report.collect import RunRecord
from lora_chat.report.element import Markup, element, join
from lora_chat.report.section import Section, build_note
from lora_chat.report.show import NOTHING, build_nested, build_table, cut_text, show_number
from lora_chat.report.values import as_list, as_number, as_object, as_text, find_value

_MAX_TEXT = 1_000


def build_general(record: RunRecord) -> Section | None:
    """Return what the adapter changed outside the task, by kind and language."""
    return _build_part(record, "general", "General abilities (forgetting)")


def build_recital(record: RunRecord) -> Section | None:
    """Return how many training replies are completed word for word."""
    return _build_part(record, "recital", "Recital of training data")


def build_overlap(record: RunRecord) -> Section | None:
    """Return how much of the evaluation data was seen in training."""
    return _build_part(record, "overlap", "Overlap with training data")


def build_generations(record: RunRecord) -> Section | None:
    """Return the figures of base, parent and child, for an adapter that was trained on from another."""
    generations = record.read("generations")
    rows: list[list[str]] = []
    for key, title in (("child_data", "the child's held-out data"), ("parent_data", "the parent's held-out data")):
        for name, values in as_object(generations.get(key)).items():
            sides = as_object(values)
            if as_number(sides.get("child")) is None:
                continue
            cells = [show_number(as_number(sides.get(side))) for side in ("base", "parent", "child")]
            rows.append([f"{cut_text(name, 100).replace('_', ' ')}, {title}", *cells])
    if not rows:
        return None
    table = build_table(["Metric", "Base", "Parent", "Child"], rows, caption="Base, parent and child")
    return Section("generations", "Base, parent and child", table)


def _build_part(record: RunRecord, key: str, title: str) -> Section | None:
    """Return a part of the comparison: its sentence, and its figures as tables."""
    value = record.read("comparison").get(key)
    if value is None or value in ({}, []):
        return None
    sentence = as_text(value) or as_text(find_value(value, "text"))
    parts: list[Markup] = [build_note(cut_text(sentence, _MAX_TEXT))] if sentence else []
    figures = {name: part for name, part in as_object(value).items() if name not in ("text", "items")}
    if figures:
        parts.append(build_nested(figures, title))
    items = [as_object(item) for item in as_list(find_value(value, "items"))]
    if items:
        parts.append(element("p", f"Items: {len(items):,}", class_="muted"))
    return Section(key, title, join(parts or [element("p", NOTHING)]))
