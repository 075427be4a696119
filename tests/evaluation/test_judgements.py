"""The statistics of votes follow from the latest vote of each judge, and their intervals contain the true value."""

import json
from collections import Counter

import numpy as np
import pytest
from judgement_records import OTHER, OWN, make_comparison, make_equal, make_retraction, make_vote

from lora_chat.evaluation.judgement_text import format_notes, format_result
from lora_chat.evaluation.judgements import PairCounts, measure_preference, summarize_comparison, summarize_judgements
from lora_chat.evaluation.run_judgements import judge_run
from lora_chat.runs.judgement_log import JudgementLog


def summarize(*records):
    (result,) = summarize_judgements(records)
    return result


@pytest.mark.parametrize("truth", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_the_intervals_cover_the_truth(truth, ties):
    random, covered, covered_halves, shown = np.random.default_rng(7), 0, 0, Counter()
    simulations = 1500
    for _ in range(simulations):
        tied = int((random.random(40) < ties).sum())
        wins = int((random.random(40 - tied) < truth).sum())
        figures = measure_preference(PairCounts(wins, 40 - tied - wins, tied, 0))
        covered += figures.win_rate_interval[0] <= truth <= figures.win_rate_interval[1]
        covered_halves += (
            figures.half_rate_interval[0] <= ties / 2 + (1 - ties) * truth <= figures.half_rate_interval[1]
        )
        shown[figures.word] += 1
    assert 0.925 <= covered / simulations <= 0.985
    assert 0.925 <= covered_halves / simulations <= 0.99
    wrong = shown["worse"] if truth > 0.5 else shown["better"] + shown["worse"]
    assert wrong / simulations <= 0.055
    if truth == 0.9:
        assert shown["better"] / simulations > 0.9


def test_the_needed_votes_would_show_the_difference():
    figures = measure_preference(PairCounts(12, 8, 5, 0))
    assert figures.word == "no difference shown"
    random, shown = np.random.default_rng(8), 0
    for _ in range(300):
        wins, losses, ties = random.multinomial(figures.needed_votes, [12 / 25, 8 / 25, 5 / 25])
        shown += measure_preference(PairCounts(int(wins), int(losses), int(ties), 0)).word == "better"
    assert 0.7 <= shown / 300 <= 0.92


@pytest.mark.parametrize(
    ("counts", "word", "p_value"),
    [
        ((0, 0, 0, 0), "not measured", None),
        ((0, 0, 5, 3), "no difference shown", 1.0),
        ((5, 0, 0, 0), "no difference shown", 0.0625),
        ((6, 0, 0, 0), "better", 0.03125),
        ((0, 6, 9, 0), "worse", 0.03125),
        ((15, 5, 0, 0), "better", 0.041389),
        ((14, 6, 0, 0), "no difference shown", 0.115318),
        ((4, 4, 0, 0), "no difference shown", 1.0),
    ],
)
def test_the_word_follows_from_the_sign_test(counts, word, p_value):
    figures = measure_preference(PairCounts(*counts))
    assert figures.word == word
    assert figures.p_value == (pytest.approx(p_value, abs=1e-6) if p_value is not None else None)
    if word in ("better", "worse"):
        assert figures.needed_votes is None


def test_ties_are_reported_and_count_half():
    result = summarize(*[make_vote(i) for i in range(6)], make_vote(6, "tie"), make_vote(7, "both bad"))
    assert (result.counts.wins, result.counts.ties, result.counts.both_bad) == (6, 1, 1)
    assert result.figures.win_rate == 1.0
    assert result.figures.half_rate == 7 / 8


def test_the_last_vote_of_a_judge_on_a_pair_counts():
    result = summarize(make_vote(0, "left"), make_vote(0, "right"), make_vote(1, "left"))
    assert (result.counts.wins, result.counts.losses, result.votes) == (1, 1, 2)


def test_a_retraction_removes_the_vote_of_its_judge_only():
    votes = [make_vote(0), make_vote(0, judge="Ann"), make_vote(1)]
    result = summarize(*votes, make_retraction(0))
    assert (result.votes, result.counts.wins, result.judges) == (2, 2, 2)
    again = summarize(*votes, make_retraction(0), make_vote(0, "right"))
    assert (again.votes, again.counts.ties, again.counts.wins) == (3, 1, 1)


def test_equal_replies_are_counted_separately_and_once():
    result = summarize(make_equal(5), make_equal(5), make_equal(6), make_vote(0))
    assert (result.equal_replies, result.counts.pairs, result.votes) == (2, 1, 1)


def test_a_comparison_and_its_reverse_are_one():
    backward = make_comparison(None, OWN)
    votes = [make_vote(i, left="b", choice="left", comparison=backward) for i in range(3)]  # the own adapter wins
    result = summarize_comparison(make_comparison(), [make_vote(7), *votes])
    assert (result.counts.wins, result.counts.losses) == (4, 0)
    assert summarize_comparison(backward, [make_vote(7), *votes]).counts.losses == 4


@pytest.mark.parametrize(
    "other",
    [
        make_comparison(OTHER),
        make_comparison(OWN, OTHER),
        make_comparison(max_new_tokens=65),
        make_comparison(base="c" * 64),
    ],
)
def test_votes_of_other_weights_or_settings_are_never_mixed(other):
    results = summarize_judgements([make_vote(0), make_vote(1, "right", comparison=other), make_vote(2)])
    assert sorted(result.votes for result in results) == [1, 2]
    assert results[-1].votes == 2  # the one with the latest record


def test_the_majority_of_judges_decides_a_pair():
    votes = [make_vote(0, judge=name) for name in "abc"] + [
        make_vote(1, c, judge=n) for c, n in (("left", "a"), ("right", "b"))
    ]
    result = summarize(*votes, make_vote(2, "both bad", judge="a"), make_vote(2, "both bad", judge="b"))
    assert (result.counts.wins, result.counts.ties, result.counts.both_bad) == (1, 1, 1)
    assert (result.votes, result.counts.pairs, result.judges) == (7, 3, 3)
    assert (result.agreement.equal, result.agreement.compared) == (4, 5)
    assert "agreed in 4 of 5 cases" in " ".join(format_notes(result))


def test_one_judge_has_no_agreement():
    assert summarize(make_vote(0), make_vote(1)).agreement is None


def test_the_position_of_preferred_replies_is_counted():
    votes = [make_vote(i, "left", left="a" if i % 2 else "b") for i in range(10)] + [
        make_vote(10, "right"),
        make_vote(11, "tie"),
    ]
    result = summarize(*votes)
    assert (result.position.left, result.position.right) == (10, 1)
    assert result.position.p_value < 0.05
    assert "in 10 of 11 votes (90.9%, p = 0.012 without a bias)" in format_notes(result)[0]


def test_the_sentence_names_counts_interval_test_and_votes():
    votes = [make_vote(i) for i in range(15)] + [make_vote(i, "right") for i in range(15, 20)]
    text = format_result(summarize(*votes, make_vote(20, "tie"), make_equal(30)))
    assert text == (
        "Better by human judgement: run-1 was preferred to base in 15 of 20 decided pairs (75.0%, 95 % interval 53.1% "
        "to 88.8%, sign test p = 0.041); 1 tie, 0 both bad; 21 votes by 1 judge on 21 pairs; 1 pair had equal replies "
        "and was not shown."
    )
    few = format_result(summarize(make_vote(0), make_vote(1), make_vote(2, "right")))
    assert few.startswith("No difference shown by human judgement (needs about ")


def test_the_run_counts_only_votes_on_its_present_weights():
    log = JudgementLog(
        (make_vote(0, comparison=make_comparison(OTHER)), make_vote(1, "right", comparison=make_comparison(None, OWN)))
    )
    judged = judge_run(log, OWN, "b" * 64)
    assert [(r.comparison.a.adapter, r.counts.wins, r.counts.losses) for r in judged.results] == [(OWN, 1, 0)]
    assert judged.other_weights == 1
    assert "1 record on other adapter weights is not counted here." in judged.lines
    assert judge_run(log, "3" * 64, "b" * 64).results == ()
    assert judge_run(log, OWN, "c" * 64).other_weights == 2
    json.dumps(judged.as_dict(), allow_nan=False)


def test_the_comparison_with_the_base_is_preferred_to_others():
    other = make_comparison(OWN, OTHER)
    votes = [make_vote(i, comparison=other) for i in range(5)] + [make_vote(9)]
    judged = judge_run(JudgementLog(tuple(votes)), OWN, "b" * 64)
    assert judged.best_known.comparison.b.adapter is None


def test_many_comparisons_take_linear_time():
    base = make_vote(0)
    records = [base.model_copy(update={"comparison": make_comparison(f"{i:064x}")}) for i in range(3000)]
    assert len(summarize_judgements(records)) == 3000
