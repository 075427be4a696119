"""Dialogues that the audit leaves out, in `audit`, `data` and a run."""

import json

import pytest

from lora_chat.cli import main
from lora_chat.config.load import read_recipe
from lora_chat.config.plan import make_plan
from lora_chat.pipeline.audit_run import audit_run
from lora_chat.pipeline.prepare import prepare_run
from lora_chat.system.hardware import describe_cpu

MAIL = "ines.okafor" + "@" + "ferrymail.org"
DROP = ("--set", "audit.personal_data=drop", "--set", "audit.exact_duplicate=drop")


def row(question, answer, system=None):
    first = [{"role": "system", "content": system}] if system else []
    return {"messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


PLAIN = [
    row(f"What is {n} times {n + 3}?", f"It is {n * (n + 3)}, my friend number {n}.", "Be kind.") for n in range(12)
]
ROWS = [*PLAIN, PLAIN[0], row("Whom do I ask?", f"Write to {MAIL}, please.")]


@pytest.fixture
def recipe(cache_home, tmp_path):
    def write(rows=ROWS, validation=PLAIN[:0]):
        for name, content in (("talk", rows), ("held", validation)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content))
        held = ", validation: held.jsonl" if validation else ", validation_share: 0.2"
        path = tmp_path / "r.yaml"
        path.write_text(
            f"base: {{name: tiny-random}}\nquantization: {{mode: none}}\ndata: {{train: talk.jsonl{held}}}\n"
            f"training: {{max_steps: 1, effective_batch_size: 2}}\nevaluation: {{samples: 0}}\n"
            f"output: {{directory: {tmp_path / 'runs'}}}\n"
        )
        return str(path)

    return write


def test_dropped_dialogues_are_counted_and_not_written(recipe, tmp_path, capsys):
    path, to = recipe(), tmp_path / "clean.jsonl"
    assert main(["audit", path, *DROP, "--to", str(to), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dropped"] == {"personal_data": 1, "exact_duplicate": 1}
    assert MAIL not in to.read_text() and "left_out" not in report

    assert main(["data", path, *DROP]) == 0
    out = capsys.readouterr().out
    assert "left out      2 dialogues, by the audit: 1 personal data, 1 duplicates" in out
    assert main(["data", path, *DROP, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["left_out"] == {"personal_data": 1, "exact_duplicate": 1}
    left_out = sum(figures["left_out"].values())
    assert (
        figures["train_dialogues"] + figures["validation_dialogues"] + left_out == figures["total"]["dialogues"] == 14
    )
    assert len(to.read_text().splitlines()) == figures["train_dialogues"]
    assert main(["audit", str(path), "--set", f"data.train={to}", "--set", "audit.personal_data=refuse"]) == 0


def test_run_has_no_dropped_dialogue_in_its_files(recipe, tmp_path):
    from lora_chat.pipeline.run_identity import digest_rows
    from lora_chat.runs.run_folder import RunFolder

    plans = [make_plan(read_recipe(recipe(), list(sets)), describe_cpu()) for sets in ((), DROP[1::2])]
    prepared = [prepare_run(plan) for plan in plans]
    (whole, _), (dropped, report) = (audit_run(*pair) for pair in zip(prepared, plans, strict=True))
    assert len(report.left_out) == 2
    assert digest_rows(whole.train) != digest_rows(dropped.train)
    assert (whole.identity.system, dropped.identity.system) == (None, "Be kind.")
    again, cached = audit_run(prepared[1], plans[1])
    assert cached == report and digest_rows(again.train) == digest_rows(dropped.train)
    (tmp_path / "run").mkdir()
    run = RunFolder(tmp_path / "run")
    dropped.write(run, redacted=True)
    written = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert written and not any(MAIL in text for text in written.values())
    assert sum(len(text.splitlines()) for name, text in written.items() if name.endswith(".jsonl")) == 12


@pytest.mark.parametrize(
    ("rows", "validation", "name"),
    [([row("a", f"{MAIL} {n}") for n in range(4)], PLAIN, "training"), (PLAIN, [row("b", MAIL)], "validation")],
)
def test_refuses_to_drop_all_dialogues(recipe, capsys, rows, validation, name):
    path = recipe(rows, validation)
    assert main(["data", path, *DROP]) == 3
    err = capsys.readouterr().err
    assert f"leaves out all {len(rows) if name == 'training' else 1} {name} dialogues" in err
    assert "--set audit.personal_data=warn" in err
