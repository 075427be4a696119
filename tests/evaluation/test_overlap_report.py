"""Counts of evaluation dialogues that were trained on, and the verdict that is withheld because of them."""

import pytest

from lora_chat.evaluation.comparison import compare_unseen, withhold_seen
from lora_chat.evaluation.loss import RowLosses
from lora_chat.evaluation.metrics import METRICS, Measurement, find_metric
from lora_chat.evaluation.overlap import OverlapReport, make_overlap_report
from lora_chat.evaluation.verdict import judge


def report(exact=0, near=0, items=100, questions=0, seen=0):
    return OverlapReport(items=items, exact=exact, near=near, questions=questions, seen_questions=seen)


@pytest.mark.parametrize(
    ("overlap", "withheld"),
    [
        (report(exact=61, near=12), True),
        (report(exact=1), False),
        (report(exact=2), True),
        (report(near=10), False),
        (report(near=11), True),
        (report(exact=1, near=10), True),
        (report(exact=1, items=50), True),
        (report(items=0), False),
    ],
)
def test_verdict_on_dialogues_is_withheld_from_a_share_on(overlap, withheld):
    assert overlap.withholds("rows") == overlap.withholds("replies") == withheld
    assert not overlap.withholds("questions")
    assert (overlap.explain_withheld("rows") is not None) == withheld


def test_sentences_name_the_counts_and_no_path():
    kinds = ["exact"] * 61 + ["near"] * 12 + ["question"] * 2 + ["reply"] + [None] * 24
    overlap = make_overlap_report(kinds, [f"secret/data.jsonl:{i}" for i in range(100)], [True, False])
    text = "73 of 100 dialogues were trained on (61 exactly, 12 nearly)."
    assert overlap.explain_withheld("replies") == text
    notes = [
        "1 of 2 questions were trained on.",
        "2 other dialogues have questions of training with other replies.",
    ]
    assert overlap.format_notes("rows") == notes
    assert overlap.format_notes("questions") == [text, notes[1]]
    assert overlap.format_examples() == [
        "Trained on: " + ", ".join(f"secret/data.jsonl:{i}" for i in (0, 1, 2, 61, 62, 63))
    ]
    assert overlap.as_dict()["examples"][0] == {"location": "secret/data.jsonl:0", "kind": "exact"}
    assert (overlap.same_reply, overlap.as_dict()["withheld"]) == (1, True)


def test_withheld_verdict_keeps_the_figures_and_loses_its_words():
    pair = {"base": 2.0, "adapted": 1.0, "items": 100, "verdict": "better", "needed_items": None}
    figures = {"validation_loss": dict(pair), "facts": dict(pair)}
    overlap = report(exact=61, near=12)
    changed = withhold_seen(figures, METRICS, overlap)
    assert {name: figure["verdict"] for name, figure in changed.items()} == {
        "validation_loss": "withheld",
        "facts": "better",
    }
    verdict = judge(find_metric("validation_loss"), changed, overlap=overlap)
    assert verdict.word == "withheld"
    assert verdict.text == "Withheld: 73 of 100 dialogues were trained on (61 exactly, 12 nearly)."
    assert withhold_seen(dict(figures), METRICS, None) == figures


def test_loss_is_compared_on_the_unseen_rows_if_they_are_enough():
    kinds = ["exact"] * 5 + [None] * 20
    overlap = make_overlap_report(kinds, ["file:1"] * 25, [], [2] * 25)
    assert overlap.unseen_rows == (False,) * 10 + (True,) * 40
    losses = (100.0,) * 10 + tuple(3.0 + i % 3 for i in range(40))
    base = Measurement(RowLosses(losses, (0,) * 50, (1,) * 50), (), ())
    adapted = Measurement(RowLosses((0.0,) * 10 + (2.0,) * 40, (0,) * 50, (1,) * 50), (), ())
    figures = compare_unseen(base, adapted, overlap)
    assert (figures["items"], figures["adapted"], figures["verdict"]) == (40, 2.0, "better")
    assert figures["base"] == pytest.approx(sum(losses[10:]) / 40)
    few = make_overlap_report(kinds[:-1], ["file:1"] * 24, [], [2] * 24)
    assert compare_unseen(base, adapted, few) is None
    assert compare_unseen(base, adapted, None) is None
    assert "unseen_rows" not in overlap.as_dict()


def test_a_text_of_several_blocks_is_named_once():
    overlap = make_overlap_report(["near", "near", "exact"], ["a:1", "a:1", "a:2"], [])
    assert overlap.format_examples() == ["Trained on: a:1, a:2"]
