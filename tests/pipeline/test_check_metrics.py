"""Listed metrics of replies that cannot be measured are refused before weights load."""

from types import SimpleNamespace

import pytest

from lora_chat.config.recipe import EvaluationSection
from lora_chat.errors import RecipeError
from lora_chat.evaluation.measurement import ReplyItem
from lora_chat.pipeline import check_metrics
from lora_chat.pipeline.check_metrics import check_listed_metrics

PREPARED = SimpleNamespace(compared=None, tokenizer=None, stop_ids=())


def check(monkeypatch, references, **settings):
    items = [ReplyItem([1], "prompt", reference) for reference in references]
    monkeypatch.setattr(check_metrics, "read_reply_items", lambda *arguments, **options: items)
    check_listed_metrics(PREPARED, EvaluationSection(**settings))


@pytest.mark.parametrize(
    ("references", "settings", "message"),
    [
        (
            ["red"],
            {"metrics": ("numeric_match",)},
            "numeric_match cannot be measured, because no reference has a number",
        ),
        (["red"], {"metrics": ("bleu", "json_match")}, "no reference is JSON"),
        (["red"], {"metrics": ("tool_calls",)}, "no reference calls a tool"),
        ([f"text {i}" for i in range(99)], {"metrics": ("macro_f1",)}, "more than 40 different references"),
        (
            ["red"],
            {"number_pattern": "answer is (.+)"},
            "evaluation.number_pattern: .* the pattern matches no reference",
        ),
        ([], {"metrics": ("bleu",)}, "no held-out prompt is answered"),
    ],
)
def test_refuses_what_cannot_be_measured(monkeypatch, references, settings, message):
    with pytest.raises(RecipeError, match=message):
        check(monkeypatch, references, **settings)


def test_accepts_auto_and_what_fits(monkeypatch):
    check(monkeypatch, [])
    check(monkeypatch, ["it is 3"], metrics=("numeric_match", "bleu", "accuracy"))
    check(monkeypatch, ["the answer is B"], number_pattern="answer is (.+)")
