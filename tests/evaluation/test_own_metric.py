"""Metrics of the user: a function in a Python file."""

import sys

import pytest

from lora_chat.errors import UsageError
from lora_chat.evaluation.measurement import Measurement, Reply, ReplyItem
from lora_chat.evaluation.overlap import OverlapReport
from lora_chat.evaluation.own_metric import load_own_metrics, report_own_metrics

CODE = """\
from dataclasses import dataclass

@dataclass
class Pair:
    a: int

def length(reference, reply):
    return len(reply) / len(reference)

def right(reference, reply):
    return reference in reply

def fails(reference, reply):
    return {}[reply]

def nothing(reference, reply):
    return None

def infinite(reference, reply):
    return float("inf")
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "my_metric.py"
    path.write_text(CODE)
    return path


def measure(replies):
    items = [ReplyItem([1], "prompt", "yes") for _ in replies]
    return Measurement(None, [], [], items, [Reply(reply, reply) for reply in replies])


def test_scores_numbers_and_right_or_wrong_replies(path):
    metrics = load_own_metrics([f"{path}:length", f"{path}:right"], ["bleu"])
    report = report_own_metrics(metrics, measure(["no"] * 10 + ["yes"]), measure(["yes"] * 11))
    assert (report["length"]["base"], report["length"]["adapted"]) == (pytest.approx(23 / 33), 1.0)
    assert (report["right"]["base"], report["right"]["adapted"]) == (pytest.approx(1 / 11), 1.0)
    assert report["right"]["verdict"] == report["length"]["verdict"] == "better"
    assert report["right"]["p_value"] == pytest.approx(2 / 2**10)
    assert report["right"]["text"].startswith("Better at the task: right 9.1% -> 100.0%")


def test_writes_no_bytecode_beside_the_file(path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    load_own_metrics([f"{path}:length"], [])
    assert [entry.name for entry in path.parent.iterdir()] == ["my_metric.py"]
    assert not sys.dont_write_bytecode


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", r"my_metric.py:14: fails failed on reply 1 of the base model: KeyError: 'no'"),
        ("nothing", r"my_metric.py:nothing returned None for reply 1 of the base model"),
        ("infinite", r"returned inf for reply 1 of the base model. Fix: return a finite number"),
    ],
)
def test_errors_of_the_function_are_one_message(path, name, message):
    metrics = load_own_metrics([f"{path}:{name}"], [])
    with pytest.raises(UsageError, match=message):
        report_own_metrics(metrics, measure(["no"]), measure(["yes"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{path}", "is not FILE:FUNCTION"),
        ("{path}:", "is not FILE:FUNCTION"),
        ("{path}:a.b", "is not FILE:FUNCTION"),
        ("missing.py:f", "there is no file missing.py"),
        ("{path}:nope", "has no function nope; it has dataclass, Pair, length"),
        ("{path}:CODE", "has no function CODE"),
    ],
)
def test_refuses_what_is_no_function(path, text, message):
    with pytest.raises(UsageError, match=message):
        load_own_metrics([text.format(path=path)], [])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:\n", r"broken.py:1: it cannot be loaded: SyntaxError"),
        ("\nimport no_such_module\n", r"broken.py:2: it cannot be loaded: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", r"broken.py:1: it cannot be loaded: SystemExit"),
        ("\0", r"broken.py.*: it cannot be loaded"),
    ],
)
def test_errors_of_the_file_are_one_message(tmp_path, code, message):
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(UsageError, match=message):
        load_own_metrics([f"{tmp_path}/broken.py:f"], [])


def test_refuses_a_name_that_is_taken(path, tmp_path):
    other = tmp_path / "other.py"
    other.write_text("def bleu(a, b): return 1\ndef length(a, b): return 1\n")
    with pytest.raises(UsageError, match="another metric bleu"):
        load_own_metrics([f"{other}:bleu"], ["bleu"])
    with pytest.raises(UsageError, match="another metric length"):
        load_own_metrics([f"{path}:length", f"{other}:length"], [])


def test_withholds_the_verdict_on_dialogues_that_were_trained_on(path):
    metrics = load_own_metrics([f"{path}:right"], [])
    report = report_own_metrics(metrics, measure(["no"] * 9), measure(["yes"] * 9), OverlapReport(9, exact=9))
    assert report["right"]["verdict"] == "withheld"
    assert report["right"]["text"].startswith("Withheld: 9 of 9")
