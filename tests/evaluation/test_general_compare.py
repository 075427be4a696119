"""The comparison of general replies counts right ones, and its word follows the exact McNemar test."""

import pytest

from lora_chat.evaluation.general.compare import compare_general
from lora_chat.evaluation.general.items import GeneralItem
from lora_chat.evaluation.general.measure import GeneralReply
from lora_chat.evaluation.general.report import format_general
from lora_chat.evaluation.general.selection import GeneralSet


def compare(base, adapted, available=None):
    """Compare two models by strings of + and -, right and wrong replies."""
    count = len(base)
    items = tuple(
        GeneralItem(f"i{n}", "en" if n % 2 else "zh", "fact" if n % 3 else "chat", "p", "equals", {"accept": ("+",)})
        for n in range(count)
    )
    general = GeneralSet(items, available or count)
    replies = [[GeneralReply((ord(mark), 7), mark) for mark in marks] for marks in (base, adapted)]
    return compare_general(general, *replies)


@pytest.mark.parametrize(
    ("base", "adapted", "word", "clause"),
    [
        ("+" * 50, "-" * 10 + "+" * 40, "worse", "20 points worse in general (7 to 31, 50 items)"),
        ("-" * 50, "+" * 10 + "-" * 40, "better", "20 points better in general (7 to 31, 50 items)"),
        ("+" * 50, "+" * 50, "no difference shown", "no loss shown in general (-5 to +5 points, 50 items)"),
        (
            "+" * 50,
            "-" * 5 + "+" * 45,
            "no difference shown",
            "no loss shown in general (-19 to 0 points, 50 items)",
        ),
        (
            "+" * 11 + "-" * 3 + "+" * 26,
            "-" * 11 + "+" * 3 + "+" * 26,
            "no difference shown",
            "a loss in general is possible and not shown (-37 to -1 points, 40 items)",
        ),
        (
            "+" * 5 + "-" * 45,
            "-" * 50,
            "no difference shown",
            "no loss could be shown in general (the base answers 5 of 50 items right)",
        ),
    ],
)
def test_word_and_clause(base, adapted, word, clause):
    report = compare(base, adapted)
    assert report.word == word
    assert report.clause == clause


def test_counts_by_kind_and_language_and_equal_replies():
    report = compare("++--++", "+---+-", available=9)
    assert (report.items, report.available, report.base_right, report.adapted_right) == (6, 9, 4, 2)
    assert report.difference == pytest.approx(-100 / 3)
    assert [(g.name, g.items, g.base_right, g.adapted_right) for g in report.kinds] == [
        ("chat", 2, 1, 1),
        ("fact", 4, 3, 1),
    ]
    assert [(g.name, g.items) for g in report.languages] == [("zh", 3), ("en", 3)]
    assert report.equal_replies == pytest.approx(4 / 6)
    assert report.equal_leading_tokens == pytest.approx(4 / 6)
    assert "answers" not in report.summary
    assert report.as_dict()["answers"][1] == {
        "id": "i1",
        "language": "en",
        "kind": "fact",
        "prompt": "p",
        "base": "+",
        "adapted": "-",
        "base_right": True,
        "adapted_right": False,
    }
    assert format_general(report)[0] == "General: 4 -> 2 of 6 of 9 items right; 67% of the base's replies are unchanged"


def test_equal_beginnings_are_measured_in_tokens():
    general = GeneralSet((GeneralItem("a", "en", "chat", "p", "upper_case", {}),) * 3, 3)
    base = [GeneralReply(ids, "") for ids in [(1, 2, 3, 4), (), (1,)]]
    adapted = [GeneralReply(ids, "") for ids in [(1, 2, 9), (), ()]]
    report = compare_general(general, base, adapted)
    assert report.equal_leading_tokens == pytest.approx((2 / 4 + 1 + 0) / 3)
    assert report.equal_replies == pytest.approx(1 / 3)
