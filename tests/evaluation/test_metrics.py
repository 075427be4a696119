"""Every output of a comparison is derived from the table of metrics."""

import json
import math

import pytest

from lora_chat.evaluation import format
from lora_chat.evaluation.comparison_report import ComparisonReport, QuestionAnswers, SampleReplies
from lora_chat.evaluation.loss import RowLosses
from lora_chat.evaluation.metrics import (
    METRICS,
    Measurement,
    Metric,
    compare_metrics,
    count_each,
    find_metric,
    format_changes,
)
from lora_chat.evaluation.questions import Question
from lora_chat.evaluation.verdict import judge

QUESTIONS = [Question("Which day?", ("Monday",)), Question("Which color?", ("red", "crimson"))]
BASE = Measurement(RowLosses((2.0, 6.0), (0, 1), (1, 3)), QUESTIONS, ["Sunday", "blue"])
ADAPTED = Measurement(RowLosses((2.0, 2.0), (1, 3), (1, 3)), QUESTIONS, ["On Monday.", "blue"])


def make_report(metrics=METRICS):
    answers = tuple(QuestionAnswers(q.question, "Sunday", "Monday", False, True) for q in QUESTIONS)
    samples = (SampleReplies("Hello?", "Hello.", "Hi", "Hello"),)
    figures = compare_metrics(BASE, ADAPTED, metrics)
    return ComparisonReport(figures, 7, samples, answers, judge(metrics[0], figures), metrics)


def values(figures):
    return {name: (pair["base"], pair["adapted"]) for name, pair in figures.items()}


def test_computes_every_metric_of_both_models():
    assert values(compare_metrics(BASE, ADAPTED)) == {
        "validation_loss": (2.0, 1.0),
        "perplexity": (pytest.approx(math.e**2), pytest.approx(math.e)),
        "token_accuracy": (0.25, 1.0),
        "facts": (0.0, 0.5),
    }


def test_omits_a_metric_without_data():
    figures = compare_metrics(Measurement(BASE.losses, [], []), Measurement(ADAPTED.losses, [], []))
    assert set(figures) == {"validation_loss", "perplexity", "token_accuracy"}
    report = ComparisonReport(figures, 7, (), ())
    assert report.as_dict()["facts"] is None
    assert "questions" not in format.format_comparison(report)


def test_json_keeps_its_keys():
    report = make_report().as_dict()
    assert set(report) >= {
        "validation_loss",
        "perplexity",
        "validation_dialogues",
        "samples",
        "facts",
        "questions",
        "answers",
    }
    assert report["facts"] == {"base": 0.0, "adapted": 0.5}
    assert report["questions"] == 2
    assert set(report["answers"][0]) == {"question", "base", "adapted", "base_right", "adapted_right"}
    assert json.loads(json.dumps(report, allow_nan=False))["verdict"]["word"] == "no difference shown"


def test_summary_shows_only_metrics_of_the_summary():
    assert format_changes(make_report().figures) == "validation loss 2.000 -> 1.000, right of 2 questions 0% -> 50%"


def test_lower_loss_and_more_correct_answers_are_improvements():
    assert find_metric("validation_loss").is_improved(2.0, 1.0)
    assert not find_metric("validation_loss").is_improved(1.0, 1.0)
    assert find_metric("facts").is_improved(0.0, 0.5)
    assert not find_metric("facts").is_improved(0.5, 0.0)


def test_a_new_metric_appears_in_json_and_text():
    new = Metric(
        "words",
        "mean words of an answer",
        "questions",
        lambda measured: count_each([3.0] * len(measured.answers)),
        "{:.1f}".format,
        lower_is_better=True,
    )
    report = make_report((*METRICS, new))
    assert report.as_dict()["figures"]["words"]["base"] == 3.0
    assert "mean words of an answer         3.0         3.0" in format.format_comparison(report)


def test_without_a_validation_set_only_questions_are_compared():
    without_loss = Measurement(None, QUESTIONS, BASE.answers), Measurement(None, QUESTIONS, ADAPTED.answers)
    assert set(compare_metrics(*without_loss)) == {"facts"}
    report = ComparisonReport({}, 0, (), ())
    assert report.as_dict()["validation_loss"] is None
    assert "no validation set" in format.format_comparison(report)


@pytest.mark.parametrize(
    ("base", "adapted", "rows", "word", "in_text"),
    [
        (2.0, 1.0, 20, "better", "Better at the task: validation loss 1.950 -> 0.975 (-0.975"),
        (1.0, 2.0, 20, "worse", "Worse at the task"),
        (1.0, 1.0, 20, "no difference shown", "No difference shown at the task: "),
        (2.0, 1.0, 5, "no difference shown", "needs about 6 items"),
    ],
)
def test_the_verdict_is_by_the_difference_and_the_number_of_items(base, adapted, rows, word, in_text):
    sides = [
        Measurement(RowLosses(tuple(mean * (1 + i % 3) for i in range(rows)), (0,) * rows, (2,) * rows), [], [])
        for mean in (base, adapted)
    ]
    figures = compare_metrics(*sides)
    verdict = judge(find_metric("validation_loss"), figures)
    assert verdict.word == word == figures["validation_loss"]["verdict"]
    assert in_text in verdict.text
