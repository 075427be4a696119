"""Other abilities than the task: general items, and base beside parent and child."""

from collections.abc import Mapping

from lora_chat.report.collect import RunRecord
from lora_chat.report.element import Child, Markup, element, join
from lora_chat.report.figures import find_style
from lora_chat.report.section import TONES, Section, build_folded, build_note, build_plain_text, build_word
from lora_chat.report.show import (
    NOTHING,
    build_facts,
    build_table,
    cut_text,
    show_number,
    show_part,
    show_share,
)
from lora_chat.report.values import as_count, as_interval, as_list, as_number, as_object, as_text

_MAX_TEXT = 1_000
_MAX_REPLY = 1_000
_MAX_ROWS = 200


def build_general(record: RunRecord) -> Section | None:
    """Return how general abilities changed, by kind and language, with the replies that became right or wrong."""
    general = as_object(record.read("comparison").get("general"))
    items, base, adapted = (as_count(general.get(key)) for key in ("items", "base_right", "adapted_right"))
    if items is None or base is None or adapted is None:
        return None
    word = as_text(general.get("word"))
    interval = as_interval(general.get("difference_interval"))
    facts: dict[str, Child] = {
        "right replies, base": show_part(base, items),
        "right replies, adapted": show_part(adapted, items),
        "difference in points": _show_signed(as_number(general.get("difference")), interval),
        "p": show_number(as_number(general.get("p_value")), 2),
        "replies equal to the base's": show_share(as_number(general.get("equal_replies"))),
        "equal first tokens of a reply": show_share(as_number(general.get("equal_leading_tokens"))),
        "items": f"{items:,} of {show_number(as_number(general.get('available')))}",
        "set": cut_text(as_text(general.get("set_name")) or NOTHING, 200),
    }
    text = as_text(general.get("text"))
    sentence = f"{text[:1].upper()}{cut_text(text[1:], _MAX_TEXT)}." if text else ""
    parts = [
        build_note(build_word(cut_text(word, 60)) if word else None, " ", sentence, tone=_choose_tone(word)),
        build_facts(facts, "General abilities"),
        _build_groups(as_list(general.get("kinds")), "Kind"),
        _build_groups(as_list(general.get("languages")), "Language"),
        *(build_note(cut_text(note, _MAX_TEXT)) for note in map(as_text, as_list(general.get("notes"))[:20]) if note),
        _build_general_answers([as_object(answer) for answer in as_list(general.get("answers"))[:_MAX_ROWS]]),
    ]
    return Section("general", "General abilities (forgetting)", join(parts))


def build_generations(record: RunRecord) -> Section | None:
    """Return the figures of base, parent and child, for an adapter that was trained on from another."""
    generations = record.read("generations")
    rows: list[list[str]] = []
    for key, title in (("child_data", "the child's held-out data"), ("parent_data", "the parent's held-out data")):
        data = as_object(generations.get(key))
        for name, values in list(data.items())[:_MAX_ROWS]:
            sides = as_object(values)
            if as_number(sides.get("child")) is None:
                continue
            style = find_style(name, as_count(data.get("questions")) or 0)
            cells = [style.show(as_number(sides.get(side))) for side in ("base", "parent", "child")]
            rows.append([f"{style.label}, {title}", *cells])
    if not rows:
        return None
    table = build_table(["Metric", "Base", "Parent", "Child"], rows, caption="Base, parent and child")
    return Section("generations", "Base, parent and child", table)


def _build_groups(groups: list[object], title: str) -> Markup | None:
    """Return the right replies by kind or language."""
    rows: list[list[str]] = []
    for group in map(as_object, groups[:_MAX_ROWS]):
        items, base, adapted = (as_count(group.get(key)) for key in ("items", "base_right", "adapted_right"))
        if items and base is not None and adapted is not None:
            change = show_number(adapted - base)
            rows.append(
                [
                    cut_text(str(group.get("name")), 100),
                    show_part(base, items),
                    show_part(adapted, items),
                    f"+{change}" if adapted > base else change.replace("-", "−"),
                ]
            )
    head = [title, "Base, right", "Adapted, right", "Change"]
    return build_table(head, rows, caption=f"General items by {title.lower()}") if rows else None


def _build_general_answers(answers: list[Mapping[str, object]]) -> Markup | None:
    """Return the replies that became right or wrong, folded."""
    rows: list[list[Child]] = []
    for answer in answers:
        base, adapted = answer.get("base_right"), answer.get("adapted_right")
        if not isinstance(base, bool) or not isinstance(adapted, bool) or base == adapted:
            continue
        texts = (cut_text(as_text(answer.get(key)) or "", _MAX_REPLY) for key in ("prompt", "base", "adapted"))
        word = element("span", "fixed" if adapted else "broken", class_=f"word {'good' if adapted else 'bad'}")
        rows.append([cut_text(str(answer.get("kind")), 60), word, *map(build_plain_text, texts)])
    if not rows:
        return None
    table = build_table(
        ["Kind", "Change", "Prompt", "Base", "Adapted"], rows, caption="Changed replies", class_="texts"
    )
    count = "1 reply" if len(rows) == 1 else f"{len(rows):,} replies"
    return build_folded(f"{count} that became right or wrong", table)


def _choose_tone(word: str | None) -> str:
    return TONES.get(word or "", "neutral")


def _show_signed(value: float | None, interval: tuple[float, float] | None) -> str:
    """Format points with their sign and their interval."""
    if value is None:
        return NOTHING
    text = f"{value:+.1f}".replace("-", "−")
    if interval is None:
        return text
    return f"{text} ({interval[0]:+.1f} to {interval[1]:+.1f})".replace("-", "−")
