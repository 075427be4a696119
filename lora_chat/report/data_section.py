"""Lengths, tokens with loss, and the audit of the data."""

from collections.abc import Mapping

from lora_chat.report.collect import RunRecord
from lora_chat.report.element import Child, Markup, element, join
from lora_chat.report.section import Section, build_note
from lora_chat.report.show import NOTHING, build_facts, build_table, cut_text, show_number, show_share
from lora_chat.report.values import as_count, as_list, as_number, as_object, as_text, find_value

_MAX_ROWS = 100
_PLOT_WIDTH, _PLOT_HEIGHT = 560, 150


def build_data(record: RunRecord) -> Section | None:
    """Return the statistics of the data, or None for a run without them."""
    data = record.read("data")
    if not data:
        return None
    total = as_object(data.get("total"))
    tokens, supervised = as_number(total.get("tokens")), as_number(total.get("supervised_tokens"))
    share = supervised / tokens if tokens and supervised is not None else None
    facts: dict[str, Child] = {
        "training dialogues": _show_count(data.get("train_dialogues")),
        "rows in an epoch": _show_count(data.get("train_rows")),
        "validation dialogues": _show_count(data.get("validation_dialogues")),
        "tokens": _show_count(tokens),
        "tokens with loss": f"{_show_count(supervised)} ({show_share(share)})",
        "replies with loss": _show_count(total.get("replies")),
        "longest row": f"{_show_count(total.get('longest'))} tokens",
        "equal dialogues": _show_count(data.get("duplicates")),
        "lines refused": _show_count(total.get("refused")),
        "too long: cut / dropped": f"{_show_count(total.get('cut'))} / {_show_count(total.get('dropped'))}",
        "useful positions, packed / padded": " / ".join(
            show_share(as_number(find_value(data, "packing", key))) for key in ("packed", "padded")
        ),
    }
    thinking = as_text(data.get("thinking"))
    parts = [
        build_facts(facts, "Statistics of the data"),
        build_note(cut_text(thinking, 500)) if thinking else None,
        _draw_lengths(as_list(data.get("histogram"))),
        _build_roles(as_object(total.get("roles"))),
        _build_sources(as_list(data.get("sources"))),
    ]
    return Section("data", "Training data", join(parts))


def build_audit(record: RunRecord) -> Section | None:
    """Return the findings of the audit, whose excerpts are masked, or None for a run without one."""
    audit = record.read("audit")
    if not audit:
        return None
    counts = as_object(audit.get("counts"))
    refused, redacted = ({str(kind) for kind in as_list(audit.get(key))[:100]} for key in ("refused", "redacted"))
    dropped = as_object(audit.get("dropped"))
    policy = as_object(record.read("plan").get("audit"))
    summary = f"{_show_count(audit.get('dialogues'))} dialogues were searched."
    if not counts:
        return Section("audit", "Audit of the data", build_note(f"{summary} Nothing was found.", tone="good"))
    rows = []
    for kind, count in list(counts.items())[:_MAX_ROWS]:
        action = as_text(policy.get(kind)) or (
            "refuse" if kind in refused else "redact" if kind in redacted else NOTHING
        )
        row = [kind.replace("_", " "), _show_count(count), cut_text(action, 40), _show_count(dropped.get(kind, 0))]
        rows.append(row)
    table = build_table(["Finding", "Number", "Action", "Dialogues left out"], rows, caption="Findings by kind")
    return Section("audit", "Audit of the data", join(build_note(summary), table))


def _draw_lengths(bars: list[object]) -> Markup | None:
    """Return the histogram of row lengths as a drawing."""
    counted: list[tuple[int, int, int]] = []
    for bar in bars[:60]:
        numbers = [as_count(part) for part in as_list(bar)]
        if len(numbers) == 3 and None not in numbers:
            counted.append((numbers[0] or 0, numbers[1] or 0, numbers[2] or 0))
    tallest = max((count for _, _, count in counted), default=0)
    if not tallest:
        return None
    width = _PLOT_WIDTH / len(counted)
    parts: list[Markup] = []
    for i, (low, high, count) in enumerate(counted):
        height = count / tallest * (_PLOT_HEIGHT - 40)
        top = _PLOT_HEIGHT - 22 - height
        title = element("title", f"{low:,} to {high:,} tokens: {count:,} rows")
        parts.append(element("rect", title, x=i * width + 1, y=top, width=width - 2, height=max(height, 0.5)))
        middle = (i + 0.5) * width
        if count:
            parts.append(element("text", f"{count:,}", class_="tick", x=middle, y=top - 4, text_anchor="middle"))
        if len(counted) <= 14 and i % 2 == 0:
            parts.append(element("text", f"{low:,}", class_="tick", x=middle, y=_PLOT_HEIGHT - 6, text_anchor="middle"))
    description = f"Lengths of training rows, from {counted[0][0]:,} to {counted[-1][1]:,} tokens"
    drawing = element(
        "svg",
        parts,
        class_="histogram",
        viewBox=f"0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}",
        role="img",
        aria_label=description,
    )
    caption = element("figcaption", f"{description}. Labels below the bars are their shortest lengths.")
    return element("figure", drawing, caption)


def _build_roles(roles: Mapping[str, object]) -> Markup | None:
    """Return characters and those with loss, by role."""
    rows = []
    for role, pair in list(roles.items())[:_MAX_ROWS]:
        numbers = [as_number(part) for part in as_list(pair)]
        if len(numbers) == 2 and numbers[0] is not None and numbers[1] is not None:
            share = numbers[1] / numbers[0] if numbers[0] else None
            rows.append([cut_text(role, 60), show_number(numbers[0]), show_number(numbers[1]), show_share(share)])
    head = ["Role", "Tokens of text", "With loss", "Share"]
    return build_table(head, rows, caption="Which roles carry loss") if rows else None


def _build_sources(sources: list[object]) -> Markup | None:
    """Return the counts of each source."""
    keys = ("weight", "lines", "accepted", "refused", "dialogues", "tokens", "supervised_tokens")
    rows = [
        [cut_text(str(source.get("name")), 300), *(_show_count(source.get(key)) for key in keys)]
        for source in map(as_object, sources[:_MAX_ROWS])
        if source
    ]
    head = ["Source", "Weight", "Lines", "Read", "Refused", "Dialogues", "Tokens", "Tokens with loss"]
    return build_table(head, rows, caption="Sources") if rows else None


def _show_count(value: object) -> str:
    return show_number(as_number(value))
