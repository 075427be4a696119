"""Votes of human judges on pairs of replies."""

from lora_chat.evaluation.judgement_text import format_notes, format_p_value, format_result, format_share_interval
from lora_chat.evaluation.judgements import JudgementResult, Remark
from lora_chat.report.collect import RunRecord
from lora_chat.report.element import Child, Markup, element, join
from lora_chat.report.section import TONES, Section, build_folded, build_note, build_plain_text, build_word
from lora_chat.report.show import NOTHING, build_table, cut_text, show_share

_MAX_RESULTS = 20
_MAX_REMARKS = 100
_MAX_NAME = 200


def build_judgement(record: RunRecord) -> Section | None:
    """Return the result of each comparison that people judged without knowing the models."""
    judgements = record.judgements
    results = judgements.results[:_MAX_RESULTS]
    if not results and not judgements.notes:
        return None
    left_out = len(judgements.results) - len(results)
    content = join(
        (_build_result(result) for result in results),
        _build_table([result for result in results if result.votes]),
        build_note(f"Older comparisons that are not shown: {left_out:,}.") if left_out else None,
        (build_note(cut_text(text, 500), tone="warn") for text in judgements.notes),
    )
    return Section("judgement", "Human judgement", content)


def _build_result(result: JudgementResult) -> Markup:
    """Return the verdict of a comparison in one sentence, with position and agreement."""
    word = result.figures.word
    return build_note(build_word(word), " ", " ".join([format_result(result), *format_notes(result)]), tone=TONES[word])


def _build_table(results: list[JudgementResult]) -> Markup | None:
    """Return counts and figures of all comparisons, and the notes of the judges."""
    if not results:
        return None
    head = ["Compared", "Verdict", "Preferred", "Other preferred", "Tie", "Both bad", "Win rate", "Ties as half", "p"]
    table = build_table(
        [*head, "Votes", "Judges", "Tokens"],
        [_build_row(result) for result in results],
        caption="Blind votes on pairs of replies",
        class_="metrics",
    )
    remarks = [remark for result in results for remark in result.remarks]
    note = build_note(
        "Judges saw two replies in random order without names. Win rate: share of the pairs with a preferred reply, "
        "with Wilson's 95 % interval; p: exact two-sided sign test."
    )
    return join(table, note, _build_remarks(remarks))


def _build_row(result: JudgementResult) -> list[Child]:
    """Return the cells of a comparison."""
    counts, figures = result.counts, result.figures
    needed = element("small", f"needs about {figures.needed_votes:,} votes") if figures.needed_votes else None
    names = (cut_text(model.name, _MAX_NAME) for model in (result.comparison.a, result.comparison.b))
    return [
        " against ".join(names),
        join(build_word(figures.word), needed),
        f"{counts.wins:,}",
        f"{counts.losses:,}",
        f"{counts.ties:,}",
        f"{counts.both_bad:,}",
        _build_rate(figures.win_rate, figures.win_rate_interval),
        _build_rate(figures.half_rate, figures.half_rate_interval),
        format_p_value(figures.p_value).removeprefix("p ").removeprefix("= ")
        if figures.p_value is not None
        else NOTHING,
        f"{result.votes:,}",
        f"{result.judges:,}",
        f"{result.comparison.settings.max_new_tokens:,}",
    ]


def _build_rate(rate: float | None, interval: tuple[float, float] | None) -> Child:
    """Return a share above its interval."""
    small = element("small", format_share_interval(interval)) if interval else None
    return join(element("span", show_share(rate), class_="value"), small)


def _build_remarks(remarks: list[Remark]) -> Markup | None:
    """Return the notes of the judges, folded."""
    if not remarks:
        return None
    shown = remarks[:_MAX_REMARKS]
    rows: list[list[Child]] = [
        [
            f"prompt {remark.item + 1:,}",
            _describe_winner(remark),
            remark.judge or NOTHING,
            build_plain_text(remark.text),
        ]
        for remark in shown
    ]
    table = build_table(["Prompt", "Vote", "Judge", "Note"], rows, caption="Notes of the judges")
    more = (
        build_note(f"The others are in judgements.jsonl: {len(remarks) - len(shown):,}.") if remarks != shown else None
    )
    return build_folded(f"Notes of the judges ({len(remarks):,})", table, more)


def _describe_winner(remark: Remark) -> str:
    """Return the vote of a note in words."""
    return {"a": "this adapter", "b": "the other"}.get(remark.winner, remark.winner)
