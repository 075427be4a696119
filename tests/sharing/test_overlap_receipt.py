"""A verdict that is withheld stays withheld, in the same words, in the receipt and when the comparison is repeated."""

import copy

import pytest
from pydantic import ValidationError

from lora_chat.evaluation.comparison import withhold_seen
from lora_chat.evaluation.comparison_report import ComparisonReport
from lora_chat.evaluation.metrics import METRICS, find_metric
from lora_chat.evaluation.overlap import OverlapReport
from lora_chat.evaluation.verdict import judge
from lora_chat.pipeline.repeat_comparison import _check_verdict
from lora_chat.sharing.evaluation_receipt import make_evaluation_receipt

LOSS = find_metric("validation_loss")


def figures(p_value):
    shown = p_value < 0.05
    return {
        "validation_loss": {
            "base": 2.0, "adapted": 1.0, "items": 100, "base_interval": (1.9, 2.1), "adapted_interval": (0.9, 1.1),
            "difference": -1.0, "difference_interval": (-1.1, -0.9), "p_value": p_value,
            "verdict": "better" if shown else "no difference shown", "needed_items": None if shown else 300,
        }
    }  # fmt: skip


def compare(p_value=0.001, overlap=None):
    pairs = withhold_seen(figures(p_value), METRICS, overlap)
    verdict = judge(LOSS, pairs, overlap=overlap)
    return ComparisonReport(pairs, 100, (), (), verdict=verdict, overlap=overlap)


SEEN = OverlapReport(items=100, exact=61, near=12, same_question=3)
FEW = OverlapReport(items=100, near=2, questions=5)


@pytest.mark.parametrize("p_value", [0.001, 0.4])
@pytest.mark.parametrize("overlap", [SEEN, FEW, None])
def test_receipt_says_the_same_words(p_value, overlap):
    report = compare(p_value, overlap)
    receipt = make_evaluation_receipt(report.as_dict(), "0" * 64)
    assert receipt.make_verdict().text == report.verdict.text
    assert (receipt.verdict.word == "withheld") == (overlap is SEEN)
    assert _check_verdict(report, receipt, "100 dialogues").passed


def test_receiver_without_digests_confirms_the_figures_of_a_withheld_verdict():
    receipt = make_evaluation_receipt(compare(overlap=SEEN).as_dict(), None)
    check = _check_verdict(compare(), receipt, "100 dialogues")
    assert check.passed
    assert "73 of 100 dialogues were trained on" in check.found
    assert not _check_verdict(compare(overlap=SEEN), make_evaluation_receipt(compare().as_dict(), None), "it").passed


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["overlap"].update(exact=0, near=0),
        lambda r: r.update(overlap=None),
        lambda r: r["overlap"].update(exact=99),
        lambda r: r["overlap"].update(questions=1, seen_questions=2),
        lambda r: r["figures"]["validation_loss"].update(verdict="better"),
        lambda r: r["verdict"].update(word="better"),
    ],
)
def test_contradictory_statements_are_refused(change):
    comparison = copy.deepcopy(compare(overlap=SEEN).as_dict())
    change(comparison)
    with pytest.raises(ValidationError):
        make_evaluation_receipt(comparison, None)
