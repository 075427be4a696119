"""Each rule of tools/style_gate.py finds a planted offender and accepts good style."""

import importlib.util
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "tools" / "style_gate.py"
spec = importlib.util.spec_from_file_location("style_gate", SOURCE)
style_gate = importlib.util.module_from_spec(spec)
sys.modules["style_gate"] = style_gate
spec.loader.exec_module(style_gate)

GOOD_SOURCE = '''
"""Count the tokens of rows."""

from typing import TypedDict

MAX_TOKENS = 4
"""Tokens of the longest row."""


class Report(TypedDict):
    """Counts of one run."""

    forecast: int


def count_tokens(rows: list[int]) -> int:
    """Return the number of tokens of held-out rows."""
    held_out_count = len(rows)
    return held_out_count  # the longest row counts once
'''

OFFENDERS = {
    "function docstrings without a verb first, %": 'def f():\n    """The number of tokens."""\n',
    "docstrings that begin in the middle of a thought, %": 'LIMIT = 1\n"""Of the longest row."""\n',
    "annotations that mention Any, %": "def f(rows: dict[str, Any]) -> None: ...\n",
    "odd English per 1,000 words": "# the file is made anew\n",
    "class names used twice": "class Report: ...\n",
    "banned words in identifiers": "def run_forecast(): ...\n",
    "vague names of values": "found = 1\n",
}


@pytest.fixture
def check(tmp_path):
    package = tmp_path / "package"
    (package / "models").mkdir(parents=True)
    for name in ("__init__.py", "__main__.py", "api.py", "cli.py", "errors.py", "models/__init__.py"):
        (package / name).touch()

    def check_sources(**sources):
        for name, text in sources.items():
            (package / f"{name.replace('__', '/')}.py").write_text(text)
        return {result.rule: result for result in style_gate.check_package(package)}

    return check_sources


def test_accepts_good_style(check):
    results = check(models__rows=GOOD_SOURCE)
    assert set(results) == set(style_gate.LIMITS)
    assert [result.rule for result in results.values() if not result.passed] == []
    assert all(result.value == 0 for result in results.values() if result.rule != "modules at the package root")


@pytest.mark.parametrize("rule", OFFENDERS)
def test_finds_a_planted_offender(check, rule):
    results = check(models__rows=GOOD_SOURCE, models__offender=OFFENDERS[rule])
    assert results[rule].value > 0
    assert any("offender.py" in offender for offender in results[rule].offenders)
    for other in set(OFFENDERS) - {rule}:
        assert results[other].value == 0, other


@pytest.mark.parametrize(
    ("rule", "module"),
    [
        ("modules at the package root", "extra"),
        ("modules with a vague name", "models__utils"),
        ("modules with a vague name", "models__core"),
        ("modules named by a bare gerund", "models__signing"),
        ("banned words in identifiers", "models__machine_probe"),
    ],
)
def test_finds_a_module_by_its_name(check, rule, module):
    result = check(**{module: ""})[rule]
    assert not result.passed
    assert any(module.split("__")[-1] in offender for offender in result.offenders)


@pytest.mark.parametrize(
    "name",
    ["a_forecast", "ForecastTable", "PROOF_LIMIT", "held_bytes", "rows_anew", "_thoughtless_rows", "twins"],
)
def test_finds_a_banned_word_in_every_spelling_of_a_name(check, name):
    assert check(models__names=f"{name} = 1\n")["banned words in identifiers"].value == 1


@pytest.mark.parametrize("name", ["held_out_rows", "behindhand", "waterproof", "reheld"])
def test_accepts_standard_phrases_and_longer_words(check, name):
    assert check(models__names=f"{name} = 1\n")["banned words in identifiers"].value == 0


@pytest.mark.parametrize("pattern", style_gate.ODD_ENGLISH.values(), ids=style_gate.ODD_ENGLISH)
def test_every_pattern_of_odd_english_counts(check, pattern):
    examples = (
        "the row behind it; it stands here; it goes on; made anew; so many rows; a file of its own; it is no number; "
        "what is read; that of a row; held in memory; it tells; made of rows; it is alone; as it is; perhaps; mended"
    )
    counted = check(models__text=f'"""{examples}"""\n')["odd English per 1,000 words"].offenders
    name = next(name for name, text in style_gate.ODD_ENGLISH.items() if text == pattern)
    assert any(offender.endswith(name) for offender in counted)


def test_main_fails_only_beyond_a_limit(tmp_path, capsys):
    (tmp_path / "errors.py").touch()
    assert style_gate.main([str(tmp_path)]) == 0
    (tmp_path / "errors.py").write_text("found = 1\n")
    assert style_gate.main([str(tmp_path)]) == 1
    assert "errors.py:1: found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "verb_first"),
    [
        ("Return a row.", True),
        ("Returns a row.", True),
        ("Copies a row.", True),
        ("`Return` a row.", True),
        ("A row.", False),
        ("Whether it fits.", False),
        ("", False),
    ],
)
def test_recognises_verbs(text, verb_first):
    assert style_gate.begins_with_verb(text) is verb_first
