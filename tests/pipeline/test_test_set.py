"""A test set beside validation: chosen, audited, counted, written into the run and read again."""

import json
from types import SimpleNamespace

import pytest

from lora_chat.config.load import read_recipe
from lora_chat.config.plan import make_plan
from lora_chat.data.format import statistics_summary
from lora_chat.errors import DataError, IntegrityError, RecipeError
from lora_chat.evaluation.comparison_report import ComparisonReport
from lora_chat.evaluation.format import format_comparison
from lora_chat.models.bound_adapter import BoundAdapter
from lora_chat.pipeline.audit_run import audit_run
from lora_chat.pipeline.data_lengths import measure_lengths
from lora_chat.pipeline.prepare import prepare_held_out, prepare_run
from lora_chat.runs.origin import PREPARED_FILES
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.hardware import Hardware

CPU = Hardware("cpu", "test", 8 << 30, False, 2)


def write_rows(path, numbers):
    turns = [
        [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": "no " * (i + 1)}]
        for i in numbers
    ]
    path.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    return path


@pytest.fixture
def plan_of(tmp_path, cache_home):
    def make(data, *settings):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            "base: {name: tiny-random}\nquantization: {mode: none}\n"
            f"data: {json.dumps({'max_length': 400, 'workers': 1} | data)}\n"
        )
        return make_plan(read_recipe(recipe, settings), CPU)

    return make


def asked(dialogues):
    return {unit.messages[0].content for unit in dialogues.read()}


def test_share_for_the_test_leaves_the_validation_set_unchanged(plan_of, tmp_path):
    write_rows(tmp_path / "train.jsonl", [*range(20), *range(5)])
    data = {"train": "train.jsonl", "validation_share": 0.2}
    before, after = prepare_run(plan_of(data)), prepare_run(plan_of(data | {"test_share": 0.2}))
    sets = [asked(part) for part in (after.train, after.validation, after.test)]
    assert len(before.test) == 0
    assert sets[1] == asked(before.validation)
    assert len(set.union(*sets)) == sum(map(len, sets)) == 20
    assert 4 <= len(after.test) <= 6
    assert after.compared is after.test
    assert before.compared is before.validation
    only = prepare_run(plan_of(data | {"validation_share": 0, "test_share": 0.2}))
    assert (len(only.validation), only.compared_name) == (0, "test")
    assert only.parity_dialogues is only.test


def test_named_test_files_are_counted_measured_written_and_read_again(plan_of, tmp_path):
    write_rows(tmp_path / "train.jsonl", range(8))
    folder = tmp_path / "held"
    folder.mkdir()
    write_rows(folder / "train.jsonl", range(30, 40))
    write_rows(folder / "test.jsonl", range(90, 95))
    plan = plan_of({"train": "train.jsonl", "test": "held", "validation_share": 0.25})
    prepared, report = audit_run(prepare_run(plan), plan)
    assert report.dialogues == 13
    assert asked(prepared.test) == {f"Question {i}?" for i in range(90, 95)}
    assert prepared.statistics.as_dict()["test_dialogues"] == 5
    assert any("2 for validation, 5 for the test" in line for line in statistics_summary(prepared.statistics))

    lengths = measure_lengths(
        plan, prepared.train, prepared.validation, (), None, prepared.tokenizer, test=prepared.test
    )
    assert lengths.compared.longest == lengths.longest_measured > lengths.validation.longest == lengths.parity.longest

    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    prepared.write(run, redacted=False)
    assert {run.test.name, "parent/test_blocks.jsonl"} <= set(PREPARED_FILES)
    adapter = BoundAdapter(SimpleNamespace(identity=prepared.identity), prepared.base, prepared.tokenizer)
    again = prepare_held_out(adapter, plan, run)
    assert [list(row.input_ids) for row in again.compared.rows] == [list(row.input_ids) for row in prepared.test.rows]
    assert asked(again.validation) == asked(prepared.validation)
    run.test.unlink()
    with pytest.raises(IntegrityError, match="test dialogues of the run"):
        prepare_held_out(adapter, plan, run)


def test_audit_refuses_and_drops_test_dialogues_of_other_sets(plan_of, tmp_path):
    write_rows(tmp_path / "train.jsonl", range(1, 5))
    write_rows(tmp_path / "valid.jsonl", [11, 12])
    write_rows(tmp_path / "test.jsonl", [2, 12, 21])
    data = {"train": "train.jsonl", "validation": "valid.jsonl", "test": "test.jsonl"}
    plan = plan_of(data)
    _, report = audit_run(prepare_run(plan), plan)
    assert report.is_refused
    twins = sorted(
        (finding.location.rsplit("/")[-1], finding.twin.rsplit("/")[-1])
        for finding in report.findings
        if finding.kind == "leak"
    )
    assert twins == [("test.jsonl:1", "train.jsonl:2"), ("test.jsonl:2", "valid.jsonl:2")]
    plan = plan_of(data, "audit.leak=drop")
    prepared, _ = audit_run(prepare_run(plan), plan)
    assert [len(part) for part in (prepared.train, prepared.validation, prepared.test)] == [4, 2, 1]
    assert prepared.statistics.test_dialogues == 1
    write_rows(tmp_path / "test.jsonl", [2, 12])
    with pytest.raises(DataError, match="all 2 test dialogues"):
        audit_run(prepare_run(plan), plan)


def test_two_choices_of_a_test_set_and_too_few_dialogues_are_refused(plan_of, tmp_path):
    write_rows(tmp_path / "train.jsonl", range(2))
    with pytest.raises(RecipeError, match="test and test_share both"):
        plan_of({"train": "train.jsonl", "test": "train.jsonl", "test_share": 0.1})
    with pytest.raises(DataError, match=r"data\.test_share=0"):
        prepare_run(plan_of({"train": "train.jsonl", "test_share": 0.1}))


def test_report_names_the_test_set_and_its_size():
    pair = {"base": 2.0, "adapted": 1.0}
    report = ComparisonReport({"validation_loss": pair}, 7, (), (), evaluated_set="test")
    assert "the test set, 7 dialogues" in format_comparison(report)
    assert (report.as_dict()["set"], report.as_dict()["used_twice"]) == ("test", False)
    plain = ComparisonReport({"validation_loss": pair}, 7, (), ())
    assert "test set" not in format_comparison(plain)
    assert plain.as_dict()["set"] == "validation"
