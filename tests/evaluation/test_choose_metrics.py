"""The metrics of replies are chosen by the data or listed, and each item has a value or none."""

import json
import random

import pytest

from lora_chat.config.load import change_evaluation, read_recipe
from lora_chat.config.metric_choice import REPLY_METRICS
from lora_chat.config.recipe import EvaluationSection
from lora_chat.data.dialogue import ToolCall
from lora_chat.data.encoding.bundled_templates import PLAIN_TEMPLATE, PLAIN_TOOLS_TEMPLATE
from lora_chat.errors import RecipeError
from lora_chat.evaluation.choose_metrics import choose_metrics
from lora_chat.evaluation.comparison import _collect_items
from lora_chat.evaluation.label_report import report_labels
from lora_chat.evaluation.metrics import METRICS, Measurement, Reply, ReplyItem, compare_metrics
from lora_chat.evaluation.questions import Question
from lora_chat.evaluation.written_calls import are_calls_readable

LONG = "The tour begins at the north gate and takes about two hours, with a break at the tea house by the lake."
CHINESE = "我们的客服中心每天从早上八点开到晚上十点，您可以随时打电话来咨询订单的情况。"
CALL = ToolCall("weather", '{"city": "Oslo"}')


def make_items(references, calls=()):
    return [ReplyItem([1], "prompt", reference, tuple(calls)) for reference in references]


def names_of(chosen):
    return [metric.name for metric in chosen.metrics if metric.items == "replies"]


def measure(items, replies):
    return Measurement(None, [], [], items, [Reply(reply, reply) for reply in replies])


@pytest.mark.parametrize(
    ("references", "names", "decisive"),
    [
        (["positive", "negative", "Neutral."] * 5, ["accuracy", "macro_f1"], "accuracy"),
        (["1", "2", "3", "4", "5"] * 4, ["accuracy", "macro_f1"], "accuracy"),
        ([f"city number {i}" for i in range(20)], ["exact_match", "token_f1"], "exact_match"),
        ([f"第{i}个城市" for i in "甲乙丙丁戊己庚辛"], ["exact_match", "token_f1"], "exact_match"),
        (
            [f"First {i}, then more of it, so the sum is:\n#### {i}" for i in range(20)],
            ["numeric_match"],
            "numeric_match",
        ),
        ([f"${i},500" for i in range(20)], ["numeric_match"], "numeric_match"),
        ([json.dumps({"name": f"n{i}", "age": i}) for i in range(20)], ["json_match", "json_valid"], "json_match"),
        ([f"{LONG} {i}" for i in range(20)], ["rougeL", "chrf"], "validation_loss"),
        ([f"{CHINESE}{i}" for i in range(20)], ["chrf", "bleu"], "validation_loss"),
        ([f"{i} May 2024" for i in range(20)], ["exact_match", "token_f1"], "exact_match"),
        ([f"{i} km" for i in range(20)], ["exact_match", "token_f1"], "exact_match"),
        ([f"+49 17{i} 1234567" for i in range(20)], ["exact_match", "token_f1"], "exact_match"),
        (["yes", "no"], ["exact_match", "token_f1"], "validation_loss"),
        ([], [], "validation_loss"),
    ],
)
def test_auto_chooses_by_the_references(references, names, decisive):
    chosen = choose_metrics(make_items(references), [], EvaluationSection())
    assert (names_of(chosen), chosen.decisive) == (names, decisive)


def test_auto_adds_the_match_of_tool_calls():
    called, answered = make_items(["weather(...)"] * 6, [CALL]), make_items([f"{LONG} {i}" for i in range(3)])
    chosen = choose_metrics([*called, *answered], [], EvaluationSection())
    assert names_of(chosen) == ["tool_calls", "rougeL", "chrf"]
    assert chosen.decisive == "tool_calls"


def test_calls_that_cannot_be_read_back_are_left_out():
    chosen = choose_metrics(make_items(["weather(...)"] * 8, [CALL]), [], EvaluationSection(), reads_calls=False)
    assert names_of(chosen) == []
    assert chosen.decisive == "validation_loss"
    assert "tool_calls is left out, because calls in the form of this chat template are not read" in chosen.reason


def test_reads_back_the_calls_that_a_template_writes(tiny_tokenizer, monkeypatch):
    stop_ids = [tiny_tokenizer.eos_token_id]
    items = make_items(["weather(...)"] * 3, [CALL])
    monkeypatch.setattr(tiny_tokenizer, "chat_template", PLAIN_TOOLS_TEMPLATE)
    assert are_calls_readable(items, tiny_tokenizer, stop_ids)
    monkeypatch.setattr(tiny_tokenizer, "chat_template", PLAIN_TEMPLATE)
    assert not are_calls_readable(items, tiny_tokenizer, stop_ids)


def test_plain_text_has_no_metric_of_replies():
    items = [ReplyItem([1], "begin", "end", is_text=True)] * 10
    assert names_of(choose_metrics(items, [], EvaluationSection())) == []


def test_questions_decide_before_replies():
    chosen = choose_metrics(make_items(["red", "blue"] * 9), [Question("q", ("a",))], EvaluationSection())
    assert chosen.decisive == "facts"


def test_replies_that_are_cut_off_do_not_decide():
    items = make_items([f"so the sum is #### {i}" for i in range(20)])
    assert choose_metrics(items, [], EvaluationSection(), num_cut=4).decisive == "numeric_match"
    chosen = choose_metrics(items, [], EvaluationSection(), num_cut=5)
    assert chosen.decisive == "validation_loss"
    assert "5 of 20 references are longer than evaluation.max_new_tokens (64)" in chosen.reason


def test_says_which_metrics_were_chosen_and_why():
    chosen = choose_metrics(make_items([f"{CHINESE}{i}" for i in range(20)]), [], EvaluationSection())
    assert chosen.reason == (
        "Metrics of 20 replies: chrF, BLEU (tokenizer zh), because references are longer texts in a script without "
        "spaces. The verdict is by the validation loss."
    )


def test_a_list_is_measured_and_what_lacks_data_is_named():
    settings = EvaluationSection(metrics=("chrf", "json_match", "tool_calls", "contains"))
    chosen = choose_metrics(make_items([f"{LONG} {i}" for i in range(9)]), [], settings)
    assert names_of(chosen) == ["chrf", "contains"]
    assert chosen.decisive == "chrf"
    assert "json_match is left out, because no reference is JSON." in chosen.reason
    assert "tool_calls is left out, because no reference calls a tool." in chosen.reason


def test_the_pattern_selects_the_compared_part():
    settings = EvaluationSection(number_pattern="answer is ([A-D])")
    items = make_items([f"Well. The answer is {letter}." for letter in "ABCDABCD"])
    chosen = choose_metrics(items, [], settings)
    assert names_of(chosen) == ["numeric_match"]
    figures = compare_metrics(
        measure(items, ["the answer is A"] * 8), measure(items, [i.reference for i in items]), chosen.metrics
    )
    assert (figures["numeric_match"]["base"], figures["numeric_match"]["adapted"]) == (0.25, 1.0)


def test_a_pattern_that_is_slow_on_replies_is_left_out(monkeypatch):
    monkeypatch.setattr("lora_chat.evaluation.scores.numbers._TIMEOUT", 0.02)
    settings = EvaluationSection(number_pattern="((?:a|aa)+)$")
    items = make_items(["aaa"] * 8)
    chosen = choose_metrics(items, [], settings)
    assert names_of(chosen) == ["numeric_match"]
    slow = measure(items, ["a" * 60 + "!"] * 8)
    assert compare_metrics(measure(items, ["aaa"] * 8), slow, chosen.metrics) == {}


def test_the_recipe_knows_every_metric_of_replies():
    assert set(REPLY_METRICS) == {metric.name for metric in METRICS if metric.items == "replies"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluation.metrics=[blue]", "did you mean bleu"),
        ("evaluation.metrics=[zzz]", "known metrics: exact_match, "),
        ("evaluation.metrics=[bleu, bleu]", "twice"),
        ("evaluation.metrics=[validation_loss]", "always measured"),
        ("evaluation.metrics=[]", "must be auto or a list of these metrics"),
        ("evaluation.metrics=null", "must be auto or a list of these metrics"),
        ("evaluation.metrics=[[bleu]]", "is an unknown metric"),
        ("evaluation.number_pattern='(a'", "not a regular expression"),
        ("evaluation.number_pattern='a'", "has 0 groups"),
        ("evaluation.number_pattern='((?:(?:a{1000}){1000}){1000})'", "multiply"),
    ],
)
def test_refuses_senseless_choices(tmp_path, setting, message):
    path = tmp_path / "recipe.yaml"
    path.write_text("data:\n  train: x.jsonl\n")
    with pytest.raises(RecipeError, match=message):
        read_recipe(str(path), [setting])


def test_a_single_metric_is_a_list_of_one(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data:\n  train: x.jsonl\n")
    assert read_recipe(str(path), ["evaluation.metrics=bleu"]).evaluation.metrics == ("bleu",)


def test_eval_changes_settings_of_replies():
    section = EvaluationSection(samples=1, max_new_tokens=9)
    changed = change_evaluation(section, ["evaluation.metrics=[bleu]", "evaluation.generation.seed=3"])
    assert changed == section.model_copy(
        update={"metrics": ("bleu",), "generation": section.generation.model_copy(update={"seed": 3})}
    )
    for setting in ("training.epochs=1", "evaluation.questions=x", "evaluation", "evaluation.each_epoch=true"):
        with pytest.raises(RecipeError, match="eval changes only"):
            change_evaluation(section, [setting])
    with pytest.raises(RecipeError, match="greater than or equal to 1"):
        change_evaluation(section, ["evaluation.max_new_tokens=0"])


def test_refuses_a_pattern_without_its_metric(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data:\n  train: x.jsonl\nevaluation:\n  metrics: [bleu]\n  number_pattern: '(.)'\n")
    with pytest.raises(RecipeError, match="belongs to numeric_match"):
        read_recipe(str(path), [])


def test_items_without_a_value_have_none():
    items = make_items(["1", "no number", "3"])
    settings = EvaluationSection(metrics=("numeric_match", "bleu"))
    chosen = choose_metrics(items, [], settings)
    collected = _collect_items(chosen, measure(items, ["1", "2", "4"]), measure(items, ["2", "x", "3"]))
    assert [item.scores["numeric_match"] for item in collected] == [(1.0, 0.0), (None, None), (0.0, 1.0)]
    json.dumps([item.scores for item in collected], allow_nan=False)


def test_every_metric_gives_the_full_value_to_equal_replies():
    rng = random.Random(0)
    data = {
        "json_match": [json.dumps({"a": i}) for i in range(12)],
        "numeric_match": [f"it is {i}" for i in range(12)],
        **dict.fromkeys(["accuracy", "macro_precision", "macro_recall", "macro_f1"], ["red", "blue", "green"] * 4),
    }
    data["json_valid"] = data["json_match"]
    for metric in METRICS:
        if metric.items != "replies" or metric.name == "tool_calls":
            continue
        items = make_items(data.get(metric.name, [f"{LONG} {i}" for i in range(12)]))
        right = measure(items, [item.reference for item in items])
        wrong = measure(items, [rng.choice(["z", "{", ""]) for _ in items])
        figures = metric.compare(wrong, right)
        assert figures["base"] == pytest.approx(0, abs=1), metric.name
        assert figures["adapted"] == pytest.approx(100 if metric.name in ("bleu", "chrf") else 1), metric.name
        assert (figures["verdict"], figures["items"]) == ("better", 12), metric.name
        low, high = figures["adapted_interval"]
        assert low <= figures["adapted"] + 1e-9
        assert high >= figures["adapted"] - 1e-9


def test_reports_each_label_and_the_confusion():
    items = make_items(["red", "blue", "green"] * 4)
    base, adapted = measure(items, ["red"] * 6 + ["unsure"] * 6), measure(items, [item.reference for item in items])
    report = report_labels(base, adapted)
    stated = json.loads(json.dumps(report.as_dict()))
    assert stated["labels"] == ["blue", "green", "red"]
    assert stated["columns"] == ["blue", "green", "red", "(other)"]
    assert stated["base"] == [[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2]]
    assert stated["adapted"] == [[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0]]
    assert stated["classes"]["base"]["recall"] == [0.0, 0.0, 0.5]
    assert stated["classes"]["base"]["precision"] == [0.0, 0.0, pytest.approx(1 / 3)]
    assert report.format_lines()[-1].split() == ["red", "40.0%", "100.0%", "4"]
