"""Training data that the adapter shows again: recited replies, and evaluation data that was trained on."""

from lora_chat.report.collect import RunRecord
from lora_chat.report.element import Child, Markup, join
from lora_chat.report.section import Section, build_note
from lora_chat.report.show import NOTHING, build_facts, build_table, cut_text, show_number, show_part, show_share
from lora_chat.report.values import as_count, as_interval, as_list, as_number, as_object, as_text, find_value

_MAX_ROWS = 200
_OVERLAP = {
    "items": "dialogues that were looked for",
    "exact": "trained on exactly",
    "near": "nearly equal to a training dialogue",
    "same_question": "questions trained on with other replies",
    "same_reply": "replies trained on with other questions",
    "questions": "questions that were looked for",
    "seen_questions": "questions that are messages of training",
}
"""Labels of the counts of the overlap."""


def build_recital(record: RunRecord) -> Section | None:
    """Return how many training replies are completed word for word, and which secrets are."""
    recital = as_object(record.read("comparison").get("recital"))
    replies = as_count(recital.get("replies"))
    if replies is None:
        return None
    rows: list[list[Child]] = []
    for side in ("base", "adapted"):
        count, interval = as_count(recital.get(side)), as_interval(recital.get(f"{side}_interval"))
        shown = f"{show_share(interval[0])} to {show_share(interval[1])}" if interval else NOTHING
        rows.append([side, show_part(count or 0, replies), shown])
    table = build_table(["Model", "Recited training replies", "95 % interval"], rows, caption="Recited replies")
    num_given, continued = (as_count(recital.get(key)) for key in ("given_tokens", "continued_tokens"))
    note = (
        f"A reply counts if the {continued} tokens after at most {num_given} given ones are equal word for word."
        if num_given and continued
        else "A reply counts if its tokens after the first ones are equal word for word."
    )
    findings = [as_object(finding) for finding in as_list(recital.get("findings"))]
    values = as_count(recital.get("values")) or 0
    parts: list[Markup] = [table, build_note(note)]
    if findings:
        parts.append(
            build_note(
                f"The adapter completes {len(findings):,} secrets or personal data; the base does not.", tone="bad"
            )
        )
        located = []
        for finding in findings[:_MAX_ROWS]:
            kind, path = (cut_text(str(finding.get(key)), 300) for key in ("kind", "path"))
            located.append([kind, path, show_number(as_number(finding.get("line")))])
        parts.append(build_table(["Kind", "File", "Line"], located, caption="Completed values"))
    elif values:
        parts.append(build_note(f"Of {values:,} secrets and personal data, the adapter completes none.", tone="good"))
    return Section("recital", "Recital of training data", join(parts))


def build_overlap(record: RunRecord) -> Section | None:
    """Return how much of the evaluation data was trained on."""
    overlap = as_object(record.read("comparison").get("overlap"))
    counts = {title: as_count(overlap.get(key)) for key, title in _OVERLAP.items()}
    if not any(count is not None for count in counts.values()):
        return None
    is_withheld = overlap.get("withheld") is True or overlap.get("withheld_questions") is True
    is_clean = not any(
        counts[_OVERLAP[key]] for key in ("exact", "near", "same_question", "same_reply", "seen_questions")
    )
    note = None
    if is_withheld:
        note = build_note("The verdict is withheld, because too much of this data was trained on.", tone="warn")
    elif is_clean:
        note = build_note("None of this data was trained on.", tone="good")
    examples = [
        [cut_text(as_text(example.get("kind")) or "", 60), cut_text(as_text(example.get("location")) or "", 300)]
        for example in map(as_object, as_list(overlap.get("examples"))[:_MAX_ROWS])
    ]
    facts: dict[str, Child] = {title: f"{count:,}" for title, count in counts.items() if count is not None}
    table = build_table(["Kind", "Where"], examples, caption="Examples") if examples else None
    parts = join(note, build_facts(facts, "Overlap"), _build_unseen(overlap.get("unseen")), table)
    return Section("overlap", "Overlap with training data", parts)


def _build_unseen(value: object) -> Markup | None:
    """Return the loss on the rows that were not trained on, if it was computed."""
    base, adapted, items = (as_number(find_value(value, key)) for key in ("base", "adapted", "items"))
    if base is None or adapted is None:
        return None
    return build_note(
        f"Loss without the rows that were trained on: {base:.3f} → {adapted:.3f} on {show_number(items)} rows."
    )
