"""The report shows human votes on the present adapter, and nothing that a judge wrote acts in a browser."""

import hashlib
import json

import pytest
from judgement_records import BASE, OTHER, make_comparison, make_equal, make_vote
from report_runs import write_run
from test_report_page import EVIL, Page

from lora_chat.cli import main
from lora_chat.report.collect import collect_run
from lora_chat.report.page import build_run_page
from lora_chat.runs.judgement_log import append_judgement
from lora_chat.runs.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    run = RunFolder(write_run(tmp_path))
    run.adapter.mkdir(exist_ok=True)
    (run.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (run.adapter / "lora_chat.json").write_text(json.dumps({"weights": BASE}))
    return run


def vote(run, *records):
    for record in records:
        append_judgement(run.judgements, record)


def own(other=None):
    return make_comparison(hashlib.sha256(b"weights").hexdigest(), other)


def page_of(run):
    return Page(build_run_page(collect_run(run)))


def test_a_run_without_votes_has_no_section(run):
    assert "judgement" not in page_of(run).ids


def test_votes_are_shown_with_interval_test_and_number(run):
    vote(
        run, *(make_vote(i, comparison=own()) for i in range(7)), make_vote(7, "right", comparison=own()), make_equal(9)
    )
    vote(run, make_vote(1, comparison=own(OTHER)))
    page = page_of(run)
    assert "judgement" in page.ids
    for text in (
        "Human judgement",
        "in 7 of 8 decided pairs",
        "87.5%",
        "needs about",
        "8 votes by 1 judge",
        "against base",
    ):
        assert text in page.text, text
    assert "The left reply was preferred in 8 of 8" not in page.text


@pytest.mark.parametrize("evil", EVIL)
def test_no_note_or_name_becomes_markup(run, evil):
    name = evil.replace("\x00", "").replace("\x07", "").replace("\x1b", "")
    comparison = own(OTHER)
    comparison = comparison.model_copy(update={"b": comparison.b.model_copy(update={"name": name})})
    vote(run, make_vote(1, comparison=comparison, note=evil, judge=name))
    page = page_of(run)
    assert page.tags.count("script") == 2
    assert not [a for a in page.attributes if a[1].startswith("on") or "javascript" in a[2] or "example.com" in a[2]]
    assert "\u202e" not in page.text and "\x1b" not in page.text


def test_votes_on_other_weights_are_ignored_and_said(run):
    vote(run, make_vote(1, comparison=make_comparison(OTHER)))
    assert "1 record on other adapter weights is not counted here." in page_of(run).text


def test_a_damaged_log_is_named(run):
    run.judgements.mkdir()
    assert "judgements.jsonl" in page_of(run).text


def test_the_command_prints_the_result(run, capsys):
    vote(run, *(make_vote(i, comparison=own()) for i in range(7)))
    run.judgements.write_bytes(run.judgements.read_bytes() + b'{"torn')
    assert main(["report", str(run.path)]) == 0
    shown = capsys.readouterr().err
    assert "Judgement: Better by human judgement" in shown
    assert "an unfinished last one" in shown
    assert main(["report", str(run.path), "--json"]) == 0
    (judgement,) = json.loads(capsys.readouterr().out)["judgements"]
    assert judgement["results"][0]["wins"] == 7
    assert judgement["results"][0]["word"] == "better"
