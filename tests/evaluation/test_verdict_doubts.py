"""A better figure is no verdict if a constant answer or a reply to another prompt is as good."""

import random

import pytest

from lora_chat.data.encoding.encode import IGNORE_INDEX, EncodedDialogue
from lora_chat.evaluation.loss import RowLosses
from lora_chat.evaluation.metrics import Measurement, Reply, ReplyItem, compare_metrics, find_metric
from lora_chat.evaluation.prompt_control import PromptControl, compare_prompts, exchange_prompts
from lora_chat.evaluation.questions import Question
from lora_chat.evaluation.verdict import judge

LABELS = ["card"] * 40 + ["loan"] * 20 + ["cash"] * 20


def measure(replies):
    items = tuple(ReplyItem((1,), f"question {i}", label) for i, label in enumerate(LABELS))
    return Measurement(None, [], [], items, [Reply(reply, reply) for reply in replies])


def verdict_of(replies):
    metric = find_metric("exact_match")
    figures = compare_metrics(measure(["I do not know"] * len(LABELS)), measure(replies), [metric])
    return figures["exact_match"], judge(metric, figures)


def test_labels_at_random_are_no_better_than_the_most_frequent_one():
    shuffled = random.Random(0).sample(LABELS, len(LABELS))
    figures, verdict = verdict_of(shuffled)
    assert figures["verdict"] == "better"  # than a base that never names a label
    assert figures["constant"] == 0.5
    assert verdict.word == "no difference shown"
    assert "always giving the most frequent answer reaches 50.0%" in verdict.text
    assert verdict_of(["card"] * len(LABELS))[1].word == "no difference shown"


def test_learned_labels_are_better():
    replies = [label if i % 8 else "card" for i, label in enumerate(LABELS)]
    figures, verdict = verdict_of(replies)
    assert verdict.word == "better"
    assert figures["constant_p_value"] < 0.001


def row(prompt, reply):
    return EncodedDialogue([*prompt, *reply], [IGNORE_INDEX] * len(prompt) + list(reply))


def test_replies_are_exchanged_between_different_prompts():
    rows = [row([1, i], [50 + i, 9]) for i in range(5)]
    rows += [row([1, 0], [70, 9]), EncodedDialogue([5, 6], [5, 6])]  # the prompt of the first row; plain text
    rows += [EncodedDialogue([1, 2, 3, 4, 5], [IGNORE_INDEX, 2, IGNORE_INDEX, 4, IGNORE_INDEX])]  # two replies
    own, others = exchange_prompts(rows)
    assert [r.input_ids for r in own] == [*(r.input_ids for r in rows[:6]), [1, 2, 3, 4]]
    assert own[-1].labels == [IGNORE_INDEX] * 3 + [4]
    for mine, other in zip(own, others, strict=True):
        reply = [label for label in mine.labels if label != IGNORE_INDEX]
        assert [label for label in other.labels if label != IGNORE_INDEX] == reply
        assert other.input_ids[: -len(reply)] != mine.input_ids[: -len(reply)]
        assert other.input_ids[-len(reply) :] == reply


def test_equal_prompts_cannot_be_exchanged():
    assert exchange_prompts([row([1, 2], [i]) for i in range(9)]) == ([], [])
    assert exchange_prompts([row([i], [1, 2]) for i in range(9)]) == ([], [])


def losses(values):
    return RowLosses(tuple(values), (0,) * len(values), (10,) * len(values))


@pytest.mark.parametrize(("other", "word"), [(0.0, "no difference shown"), (1.5, "better")])
def test_a_loss_that_does_not_depend_on_prompts_shows_nothing(other, word):
    noise = random.Random(1)
    own = [20 + noise.uniform(-2, 2) for _ in range(30)]
    control = compare_prompts(losses(own), losses([v + other + noise.uniform(-1, 1) for v in own]))
    assert control is not None
    metric = find_metric("validation_loss")
    figures = compare_metrics(
        Measurement(losses([v + 10 for v in own]), [], []), Measurement(losses(own), [], []), [metric]
    )
    verdict = judge(metric, figures, control=control)
    assert verdict.word == word
    assert ("do prompts and replies belong together?" in verdict.text) == (word != "better")
    assert compare_prompts(losses(own[:5]), losses(own[:5])) is None


def test_a_worse_figure_stays_worse():
    metric = find_metric("validation_loss")
    own = [20.0 + i % 3 for i in range(30)]
    figures = compare_metrics(
        Measurement(losses(own), [], []), Measurement(losses([v + 5 for v in own]), [], []), [metric]
    )
    control = PromptControl(30, 2.0, 2.0, (-0.1, 0.1), 1.0)
    assert judge(metric, figures, control=control).word == "worse"


def test_prompts_that_are_supervised_are_exchanged_as_prompts():
    prompts = [[1, i, 8] for i in range(7)]
    rows = [row(prompt, [50 + i, 9]) for i, prompt in enumerate(prompts)]
    on_all = [EncodedDialogue(r.input_ids, r.input_ids) for r in rows]
    on_all_but_first = [EncodedDialogue(r.input_ids, [IGNORE_INDEX, *r.input_ids[1:]]) for r in rows]
    assert exchange_prompts(on_all) == exchange_prompts(on_all, [[1, 99, 8]]) == ([], [])
    assert exchange_prompts(on_all, prompts) == exchange_prompts(on_all_but_first, prompts) == exchange_prompts(rows)


@pytest.mark.parametrize(("answers", "word"), [(["Yes."] * 20, "no difference shown"), (["yes", "no"] * 10, "better")])
def test_an_answer_that_fits_many_questions_shows_nothing(answers, word):
    questions = [Question(f"Is {i} even?", ("no", "odd") if i % 2 else ("Yes", "even")) for i in range(20)]
    metric = find_metric("facts")
    base, adapted = (Measurement(None, questions, replies) for replies in ([""] * 20, answers))
    figures = compare_metrics(base, adapted, [metric])
    assert figures["facts"]["constant"] == 0.5
    assert judge(metric, figures).word == word


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_model_without_a_finite_loss_is_worse(value):
    own = [20.0 + i % 3 for i in range(30)]
    base, adapted = (Measurement(losses(values), [], []) for values in (own, [value, *own[1:]]))
    metrics = [find_metric("validation_loss"), find_metric("perplexity")]
    figures = compare_metrics(base, adapted, metrics)
    assert [figures[metric.name]["verdict"] for metric in metrics] == ["worse", "worse"]
    assert judge(metrics[0], figures).word == "worse"
    assert compare_metrics(adapted, base, metrics)["validation_loss"]["verdict"] == "no difference shown"
