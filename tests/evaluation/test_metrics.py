"""Every output of a comparison is derived from the table of metrics."""

import math

import pytest

from lora_chat.evaluation import comparison, format, metrics
from lora_chat.evaluation.comparison import ComparisonReport, QuestionAnswers, SampleReplies
from lora_chat.evaluation.metrics import METRICS, Measurement, Metric, compute_metrics, find_metric, format_changes
from lora_chat.evaluation.questions import Question

QUESTIONS = [Question("Which day?", ("Monday",)), Question("Which color?", ("red", "crimson"))]
BASE = Measurement(2.0, QUESTIONS, ["Sunday", "blue"])
ADAPTED = Measurement(1.0, QUESTIONS, ["On Monday.", "blue"])


def make_report():
    answers = tuple(QuestionAnswers(q.question, "Sunday", "Monday", False, True) for q in QUESTIONS)
    samples = (SampleReplies("Hello?", "Hello.", "Hi", "Hello"),)
    return ComparisonReport(compute_metrics(BASE, ADAPTED), 7, samples, answers)


def test_computes_every_metric_of_both_models():
    assert compute_metrics(BASE, ADAPTED) == {
        "validation_loss": {"base": 2.0, "adapted": 1.0},
        "perplexity": {"base": pytest.approx(math.e**2), "adapted": pytest.approx(math.e)},
        "facts": {"base": 0.0, "adapted": 0.5, "questions": 2},
    }


def test_omits_a_metric_without_data():
    figures = compute_metrics(Measurement(2.0, [], []), Measurement(1.0, [], []))
    assert set(figures) == {"validation_loss", "perplexity"}
    report = ComparisonReport(figures, 7, (), ())
    assert report.as_dict()["facts"] is None
    assert "questions" not in format.format_comparison(report)


def test_json_keeps_its_keys():
    report = make_report().as_dict()
    assert set(report) == {
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


def test_summary_shows_only_metrics_of_the_summary():
    assert format_changes(make_report().figures) == "validation loss 2.000 -> 1.000, right of 2 questions 0% -> 50%"


def test_lower_loss_and_more_correct_answers_are_improvements():
    assert find_metric("validation_loss").is_improved(2.0, 1.0)
    assert not find_metric("validation_loss").is_improved(1.0, 1.0)
    assert find_metric("facts").is_improved(0.0, 0.5)
    assert not find_metric("facts").is_improved(0.5, 0.0)


def test_a_new_metric_appears_in_json_and_text(monkeypatch):
    new = Metric("words", "mean words of an answer", lambda measured: 3.0, "{:.1f}".format, lower_is_better=True)
    for module in (metrics, comparison, format):
        monkeypatch.setattr(module, "METRICS", (*METRICS, new))
    report = make_report()
    assert report.as_dict()["words"] == {"base": 3.0, "adapted": 3.0}
    assert "mean words of an answer         3.0         3.0" in format.format_comparison(report)
    assert "mean words of an answer 3.0 -> 3.0" in format_changes(report.figures)


def test_without_a_validation_set_only_questions_are_compared():
    without_loss = Measurement(None, QUESTIONS, BASE.answers), Measurement(None, QUESTIONS, ADAPTED.answers)
    assert set(compute_metrics(*without_loss)) == {"facts"}
    report = ComparisonReport({}, 0, (), ())
    assert report.as_dict()["validation_loss"] is None
    assert "no validation set" in format.format_comparison(report)
