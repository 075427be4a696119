"""Scores of replies on cases that decide between right and wrong."""

import random
import time

import numpy as np
import pytest
from test_reference_scores import REFERENCES, random_corpus

from lora_chat.data.dialogue import ToolCall
from lora_chat.evaluation.scores import labels as label_scores
from lora_chat.evaluation.scores.answers import contains, exact_match, token_f1
from lora_chat.evaluation.scores.json_texts import json_match, json_valid
from lora_chat.evaluation.scores.labels import find_labels, label_statistics, read_label
from lora_chat.evaluation.scores.numbers import SlowPatternError, numeric_match
from lora_chat.evaluation.scores.rouge import rouge_l, rouge_n
from lora_chat.evaluation.scores.text import split_words
from lora_chat.evaluation.scores.tool_calls import parse_calls, tool_call_match
from lora_chat.evaluation.scores.translation import bleu_statistics, choose_tokenizer, chrf_statistics


@pytest.mark.parametrize(
    ("reference", "reply", "is_equal"),
    [
        ("Paris", " paris. ", True),
        ("Paris", "“Paris”", True),
        ("Paris", "**Paris**", True),
        ("(B)", "B.", True),
        ("北京", "北京。", True),
        ("ＯＫ", "ok", True),
        ("Straße", "STRASSE", True),
        ("مرحبا", "مرحبا؟", True),
        ("café", "cafe\u0301", True),
        ("New  York\n", "new york", True),
        ("", "  ", True),
        ("the cat", "cat", False),
        ("-5", "5", False),
        ("50%", "50", False),
        ("C#", "C", False),
        ("C++", "C", False),
        (".5", "5", False),
        ("2⁵", "25", False),
        ("?", "!", False),
        ("[1]", "1", False),
        ("don't", "dont", False),
        ("", "x", False),
    ],
)
def test_exact_match_compares_the_normal_form(reference, reply, is_equal):
    assert exact_match(reference, reply) is is_equal
    assert exact_match(reply, reference) is is_equal


@pytest.mark.parametrize(
    ("reference", "reply", "is_contained"),
    [
        ("10:20", "We open at 10:20.", True),
        ("cat", "concatenate", False),
        ("北京", "首都是北京市。", True),
        ("Paris", "It is PARIS!", True),
        ("", "anything", False),
        ("C++", "I use C++ daily", True),
        ("cat", "concatenate a cat", True),
        ("42", "is 42", True),
        ("42", "is 421", False),
    ],
)
def test_contains_finds_whole_words(reference, reply, is_contained):
    assert contains(reference, reply) is is_contained


def test_words_keep_every_script():
    assert split_words("Ünïcode हिन्दी สวัสดี 北京, コーヒー! مرحبا 42 snake_case 😀") == [
        *("ünïcode", "हिन्दी", "ส", "วั", "ส", "ดี", "北", "京", "コ", "ー", "ヒ", "ー", "مرحبا", "42", "snake", "case")
    ]


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        (["The cat sat."], "13a"),
        (["今天天气很好。"], "zh"),
        (["我喜欢 Python and 你呢"], "zh"),
        (["วันนี้อากาศดี"], "char"),
        (["Он сказал"], "13a"),
        (["안녕하세요 세계"], "13a"),
        ([""], "13a"),
    ],
)
def test_chooses_the_tokenizer_by_script(references, tokenizer):
    assert choose_tokenizer(references) == tokenizer


def test_japanese_is_split_by_mecab_only_if_it_is_installed(monkeypatch):
    references = ["今日は天気がいいですね。"]
    monkeypatch.setattr("lora_chat.evaluation.scores.translation.find_spec", lambda name: None)
    assert choose_tokenizer(references) == "char"
    monkeypatch.setattr("lora_chat.evaluation.scores.translation.find_spec", lambda name: object())
    assert choose_tokenizer(references) == "ja-mecab"


SAME = [
    *(
        "42",
        "The answer is 42.",
        "So 3 + 4 = 7, in all\n#### 42",
        "\\boxed{42} in 3 days",
        "４２",
        "٤٢",
        "四十二",
        "42.0",
    ),
    *("$42", "42 apples", "84/2", "4.2e1", "4.2×10^1", "0.42 × 10²", "\\frac{84}{2}"),
]


@pytest.mark.parametrize("reply", SAME)
def test_reads_one_number_in_many_forms(reply):
    assert numeric_match("#### 42", reply) == (1.0, 1.0)
    assert numeric_match(reply, "42") == (1.0, 1.0)


@pytest.mark.parametrize(
    ("reference", "reply", "is_equal"),
    [
        ("1,234", "1234", True),
        ("1,234,567.5", "1 234 567.5", True),
        ("1.234,56", "1234.56", True),
        ("3/4", "0.75", True),
        ("1 1/2", "1.5", True),
        ("½", "0.5", True),
        ("-5", "minus 5", True),
        ("−5", "-$5", True),
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("50%", "50 percent", True),
        ("百分之五十", "50%", True),
        ("3万", "30000", True),
        ("5 million", "5,000,000", True),
        ("三分之一", "1/3", True),
        ("10:30", "at 10:30", True),
        ("-5", "5", False),
        ("5%", "0.5", False),
        ("5 million", "5 billion", False),
        ("3×10^5", "2×10^5", False),
        ("\\frac{3}{4}", "\\frac{1}{4}", False),
        ("3,5", "2,5", False),
        ("10:30", "9:30", False),
        ("2024-05-01", "2023-05-01", False),
        ("10-15", "12-15", False),
        ("1.2.3", "3.2.3", False),
        ("42", "#### nothing 42 ####", False),
        ("42", "none", False),
        ("9" * 500, "9" * 501, False),
        ("10^99999", "10^99998", False),
        ("1/0", "2/0", False),
    ],
)
def test_compares_last_numbers(reference, reply, is_equal):
    assert numeric_match(reference, reply) == (float(is_equal), 1.0)


def test_a_reference_without_number_is_not_counted():
    assert numeric_match("no number", "42") == (0.0, 0.0)


def test_pattern_selects_the_answer():
    pattern = r"answer is ([A-D]|\d+)"
    assert numeric_match("The answer is B", "the answer is A, no, the answer is B 7", pattern) == (1.0, 1.0)
    assert numeric_match("The answer is 7", "The answer is 8. 7", pattern) == (0.0, 1.0)
    assert numeric_match("B", "The answer is B", pattern) == (0.0, 0.0)


def test_slow_pattern_is_stopped(monkeypatch):
    monkeypatch.setattr("lora_chat.evaluation.scores.numbers._TIMEOUT", 0.02)
    begin = time.process_time()
    with pytest.raises(SlowPatternError, match="takes more than"):
        numeric_match("a" * 60 + "!", "", r"((?:a|aa)+)$")
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    "text", ["1" * 20000, "1-" * 10000, "1 " * 10000, "1 111 " * 3000, "\\frac{" * 4000, "一" * 20000]
)
def test_reads_long_texts_quickly(text):
    begin = time.process_time()
    numeric_match(text, text)
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize(
    "text", ["(" * 200_000 + ")" * 200_000, "好" * 200_000, "'\"" * 200_000, "a " * 200_000, "²" * 200_000]
)
def test_scores_long_texts_quickly(text):
    begin = time.process_time()
    for score in (exact_match, contains, token_f1, rouge_l, json_match, chrf_statistics):
        score(text, "a short reply")
    bleu_statistics(text, "a short reply", "zh")
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("reference", "reply", "valid", "match"),
    [
        ('{"a": 1, "b": [true]}', '{"b": [true], "a": 1.0}', True, 1.0),
        ('{"a": 1}', '{"a": true}', True, 0.0),
        ('{"a": 1}', '{"a": 1', False, 0.0),
        ('{"a": 1}', 'Here: {"a": 1}', False, 0.0),
        ('{"a": 1}', '```json\n{"a": 1}\n```', False, 0.0),
        ('```json\n{"a": 1}\n```', '```\n{"a": 1}\n```', True, 1.0),
        ('{"a": 1}', "[1]", False, 0.0),
        ("[1, 2]", "[2, 1]", True, 0.0),
        ('{"a": 1}', '{"a": 1, "a": 1}', False, 0.0),
        ('{"a": 1}', "[" * 5000, False, 0.0),
        ('{"a": 1}', "", False, 0.0),
    ],
)
def test_json_is_valid_and_equal(reference, reply, valid, match):
    assert json_valid(reference, reply) is valid
    assert json_match(reference, reply) == (match, 1.0)


def test_json_match_counts_only_references_of_json():
    assert json_match("hello", '{"a": 1}') == (0.0, 0.0)


WEATHER = ToolCall("weather", '{"city": "Köln", "days": 2}')
TIME = ToolCall("time", "{}")


@pytest.mark.parametrize(
    ("calls", "reply", "is_equal"),
    [
        ([WEATHER], '<tool_call>\n{"name": "weather", "arguments": {"days": 2, "city": "Köln"}}\n</tool_call>', True),
        (
            [WEATHER],
            'Let me look.\n<tool_call>{"name":"weather","arguments":{"days":2,"city":"Köln"}}</tool_call>',
            True,
        ),
        ([WEATHER], '{"name": "weather", "parameters": {"city": "Köln", "days": 2}}', True),
        ([WEATHER], '[{"name": "weather", "arguments": {"city": "Köln", "days": 2}}]', True),
        (
            [WEATHER],
            '{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}',
            True,
        ),
        ([WEATHER], '[TOOL_CALLS]weather{"city": "Köln", "days": 2}', True),
        (
            [WEATHER],
            "<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
            "</function>\n</tool_call>",
            True,
        ),
        ([WEATHER], '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": 3}}</tool_call>', False),
        ([WEATHER], '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>', False),
        ([WEATHER], '<tool_call>{"name": "clock", "arguments": {"city": "Köln", "days": 2}}</tool_call>', False),
        ([WEATHER], '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": 2}}', False),
        ([WEATHER], '<tool_call>{"name": "weather", "arguments": </tool_call>', False),
        ([WEATHER], "It is sunny in Köln for 2 days.", False),
        (
            [WEATHER, TIME],
            '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": 2}}</tool_call>\n'
            '<tool_call>{"name": "time", "arguments": {}}</tool_call>',
            True,
        ),
        (
            [WEATHER, TIME],
            '<tool_call>{"name": "time", "arguments": {}}</tool_call>\n'
            '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": 2}}</tool_call>',
            False,
        ),
        ([TIME], '<tool_call>{"name": "time", "arguments": {}}</tool_call>' * 2, False),
        ([], "An ordinary answer.", True),
        ([], '{"name": "Bob", "age": 5}', True),
        ([], '<tool_call>{"name": "time", "arguments": {}}</tool_call>', False),
        ([], "<tool_call>broken", False),
    ],
)
def test_calls_match_by_name_arguments_and_order(calls, reply, is_equal):
    assert tool_call_match(calls, reply) is is_equal


def test_parses_hostile_calls_quickly():
    begin = time.process_time()
    for reply in (
        "<tool_call>" * 20000,
        "[" * 100000,
        '{"a":' * 50000,
        "<tool_call><function=f>" + "<parameter=" * 20000,
    ):
        parse_calls(reply)
    assert time.process_time() - begin < 1


SENTIMENTS = find_labels(["Positive", "negative.", "very positive", "NEUTRAL", "neutral"])


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("Positive", "positive"),
        ("negative!", "negative"),
        ("The sentiment is NEUTRAL, I think.", "neutral"),
        ("It is very positive.", "very positive"),
        ("positive or negative", None),
        ("not positive", None),
        ("This isn't negative", None),
        ("positively", None),
        ("", None),
        ("great", None),
    ],
)
def test_reads_the_label_that_a_reply_names(reply, label):
    index = read_label(reply, SENTIMENTS)
    assert (None if index is None else SENTIMENTS[index]) == label


def test_reads_chinese_labels():
    labels = find_labels(["积极", "消极"])
    assert [read_label(text, labels) for text in ("答案是积极。", "不积极", "消极", "积极和消极")] == [
        labels.index("积极"),
        None,
        labels.index("消极"),
        None,
    ]


def test_label_figures_equal_scikit_learn():
    assert len(REFERENCES["labels"]) == 200
    for case in REFERENCES["labels"]:
        labels = find_labels(case["wanted"])
        order = [labels.index(name) for name in case["classes"]]
        replies = [reply or "something else" for reply in case["replied"]]
        pairs = zip(case["wanted"], replies, strict=True)
        totals = np.array([label_statistics(*pair, labels) for pair in pairs]).sum(axis=0)
        classes = (label_scores.class_precision, label_scores.class_recall, label_scores.class_f1)
        assert label_scores.accuracy(totals) == pytest.approx(case["accuracy"])
        assert [figure(totals)[order].tolist() for figure in classes] == [pytest.approx(x) for x in case["each"]]
        assert [float(label_scores.macro(totals, figure(totals))) for figure in classes] == pytest.approx(case["macro"])
        matrix = np.array(label_scores.confusion_matrix(case["wanted"], replies, labels))
        assert matrix[order][:, [*order, -1]].tolist() == case["confusion"]


def test_scores_are_bounded_and_full_for_equal_texts():
    for seed in range(50):
        for reference, reply in zip(*random_corpus(seed), strict=True):
            scores = (
                token_f1(reference, reply),
                *(rouge_n(reference, reply, n) for n in (1, 2)),
                rouge_l(reference, reply),
            )
            assert all(0 <= score <= 1 for score in scores)
            assert token_f1(reference, reference) == 1
            assert exact_match(reference, reference)
            assert rouge_l(reference, reference) == (1 if split_words(reference) else 0)
            assert rouge_l(reference, reply) == pytest.approx(rouge_l(reply, reference))


def test_sums_do_not_depend_on_the_order_of_items():
    references, replies = random_corpus(2)
    pairs = list(zip(references, replies, strict=True))
    shuffled = random.Random(0).sample(pairs, len(pairs))
    for statistics in (chrf_statistics, lambda reference, reply: bleu_statistics(reference, reply, "zh")):
        sums = [np.array([statistics(*pair) for pair in order]).sum(axis=0) for order in (pairs, shuffled)]
        assert sums[0].tolist() == sums[1].tolist()
