"""Records of judgements for tests."""

from lora_chat.config.generation_section import GREEDY
from lora_chat.runs.judgement_record import (
    EqualReplies,
    JudgedComparison,
    JudgedModel,
    JudgedSettings,
    Retraction,
    Vote,
    digest_pair,
    find_winner,
)

BASE, OWN, OTHER = "b" * 64, "1" * 64, "2" * 64
TIME = "2026-11-29T12:00:00Z"


def make_comparison(a=OWN, b=None, *, max_new_tokens=64, base=BASE):
    settings = JudgedSettings(max_new_tokens=max_new_tokens, generation=GREEDY, precision="none, float32")
    models = [JudgedModel(name="base" if w is None else f"run-{w[0]}", adapter=w) for w in (a, b)]
    return JudgedComparison(base=base, a=models[0], b=models[1], settings=settings)


def make_vote(item, choice="left", left="a", *, comparison=None, judge=None, note="", time=TIME):
    comparison = comparison or make_comparison()
    return Vote(
        pair=pair_of(item),
        item=item,
        comparison=comparison,
        time=time,
        left=left,
        choice=choice,
        winner=find_winner(left, choice),
        note=note,
        judge=judge,
    )


def make_retraction(item, *, comparison=None, judge=None):
    comparison = comparison or make_comparison()
    return Retraction(pair=pair_of(item), item=item, comparison=comparison, time=TIME, judge=judge)


def make_equal(item):
    return EqualReplies(pair=pair_of(item), item=item, comparison=make_comparison(), time=TIME)


def pair_of(item):
    return digest_pair(make_comparison(), [item], "x", "y")
