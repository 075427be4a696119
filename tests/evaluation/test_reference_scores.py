"""Every score equals its reference implementation on 200 random cases."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from lora_chat.evaluation.scores.answers import token_f1
from lora_chat.evaluation.scores.rouge import rouge_l, rouge_n
from lora_chat.evaluation.scores.translation import bleu, bleu_statistics, chrf, chrf_statistics

REFERENCES = json.loads(Path(__file__).with_name("reference_scores.json").read_text(encoding="utf-8"))
WORDS = [
    "the",
    "cat",
    "sat",
    "U.S.",
    "don't",
    "3.14",
    "你好",
    "世界",
    "今天",
    "。",
    "，",
    "!",
    "😀",
    "",
    " ",
    "です",
    "ไทย",
]


def random_corpus(seed):
    rng = random.Random(seed)

    def text():
        return rng.choice([" ", ""]).join(rng.choices(WORDS, k=rng.randrange(12)))

    references = [text() for _ in range(rng.choice([1, 2, 20]))]
    return references, [text() if rng.random() < 0.5 else reference for reference in references]


def sums(statistics, references, replies, *options):
    return np.array([statistics(*pair, *options) for pair in zip(references, replies, strict=True)], float).sum(0)


@pytest.mark.parametrize("name", ["token_f1", "token_f1_chinese"])
def test_token_f1_equals_squad(name):
    assert len(REFERENCES[name]) == 200
    for reference, reply, wanted in REFERENCES[name]:
        assert token_f1(reference, reply) == pytest.approx(wanted, abs=1e-12), (reference, reply)


@pytest.mark.parametrize("name", ["rouge", "rouge_chinese"])
def test_rouge_equals_rouge_score(name):
    assert len(REFERENCES[name]) == 200
    for reference, reply, wanted in REFERENCES[name]:
        scores = rouge_n(reference, reply, 1), rouge_n(reference, reply, 2), rouge_l(reference, reply)
        assert scores == pytest.approx(wanted, abs=1e-12), (reference, reply)


@pytest.mark.parametrize("tokenizer", ["13a", "zh", "char"])
def test_summed_bleu_statistics_equal_the_corpus_score(tokenizer):
    from sacrebleu.metrics import BLEU

    whole = BLEU(tokenize=tokenizer)
    for seed in range(200):
        references, replies = random_corpus(seed)
        figure = float(bleu(sums(bleu_statistics, references, replies, tokenizer)))
        assert figure == pytest.approx(whole.corpus_score(replies, [references]).score, abs=1e-9), (references, replies)


def test_summed_chrf_statistics_equal_the_corpus_score():
    from sacrebleu.metrics import CHRF

    for seed in range(200):
        references, replies = random_corpus(seed)
        figure = float(chrf(sums(chrf_statistics, references, replies)))
        assert figure == pytest.approx(CHRF().corpus_score(replies, [references]).score, abs=1e-9)


def test_figures_of_resamples_are_computed_together():
    references, replies = random_corpus(3)
    weights = np.random.default_rng(0).integers(0, 3, (50, len(references)))
    for reduce, statistics in [
        (bleu, [bleu_statistics(*pair, "zh") for pair in zip(references, replies, strict=True)]),
        (chrf, [chrf_statistics(*pair) for pair in zip(references, replies, strict=True)]),
    ]:
        totals = weights @ np.array(statistics, float)
        assert reduce(totals) == pytest.approx([float(reduce(row)) for row in totals])
