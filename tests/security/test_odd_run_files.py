"""JSON of the wrong shape in a run's files gives one message, no traceback and no incomplete file."""

import io
import json
import os
import shutil

import pytest

from lora_chat.cli import main
from lora_chat.errors import IntegrityError
from lora_chat.runs.metrics_log import truncate_metrics
from lora_chat.system.atomic_write import open_to_append

pytestmark = pytest.mark.slow


class Reached(IntegrityError):
    """The signal that weights would be loaded, because all files were accepted."""


@pytest.fixture(scope="module")
def made(cache_home, tmp_path_factory):
    """Return a finished run, without checkpoints to keep it small."""
    folder = tmp_path_factory.mktemp("runs")
    settings = [f"output.directory={folder}", "output.name=r", "evaluation.samples=0"]
    assert main(["sft", "recipes/smoke.yaml", *(word for one in settings for word in ("--set", one))]) == 0
    shutil.rmtree(folder / "r-1" / "checkpoints")
    return folder / "r-1"


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs" / "r-1")


@pytest.fixture
def call(capsys, monkeypatch, run, tmp_path):
    """Run each command until weights would be loaded, and return its messages."""

    def stop(*_, **__):
        raise Reached("reached")

    for place in (
        "models.bound_adapter.load_base_model",
        "pipeline.load_adapted.load_base_model",
        "pipeline.pack_run.build_members",
        "pipeline.pack_run._read_or_run_parity_check",
    ):
        monkeypatch.setattr(f"lora_chat.{place}", stop)
    out = tmp_path / "out"
    place = ["--set", f"output.directory={run.parent}", "--set", "output.name=r", "--set", "evaluation.samples=0"]
    commands = {
        "chat": ["chat", run],
        "eval": ["eval", run],
        "merge": ["merge", run, "--to", out],
        "export": ["export", run, "--to", "peft", "--out", out],
        "pack": ["pack", run, "--out", out],
        "history": ["plan", "recipes/smoke.yaml", "--history", *place],
        "resume": ["sft", "recipes/smoke.yaml", *place, "--resume", run, "--adopt"],
    }

    def call(name):
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        code = main([str(word) for word in commands[name]])
        said = capsys.readouterr().err
        assert code in {0, 2, 3, 7, 8} and "Traceback" not in said and said.count("Error: ") == (code != 0)
        assert not out.exists() and not out.with_suffix(".lorachat").exists()
        assert not list(tmp_path.rglob("*.part"))
        return code, said

    return call


SHAPES = [
    "{}",
    "[]",
    "[1, 99999999]",
    "[-1]",
    "[true]",
    "null",
    "3",
    "1e400",
    '"x"',
    "NaN",
    '{"step": "x"}',
    '[{"a": [[]]}]',
    "9" * 5000,
    "",
]
READ = {
    "plan.json": ["chat", "eval", "pack"],
    "recipe.yaml": ["pack"],
    "identity.json": ["pack"],
    "data.json": ["pack"],
    "audit.json": ["pack"],
    "comparison.json": ["pack"],
    "versions.json": ["pack"],
    "metrics.jsonl": ["pack"],
    "result.json": ["pack", "history", "resume"],
    "forecast.json": ["history"],
    "origin.json": ["chat"],
    "validation.jsonl": ["eval", "merge"],
    "validation_blocks.jsonl": ["eval"],
    "questions.jsonl": ["eval"],
    "adapter/adapter_config.json": ["chat", "export"],
    "adapter/lora_chat.json": ["chat", "pack"],
}


@pytest.mark.parametrize("name", READ)
def test_file_of_another_shape_gives_one_message(name, run, call):
    for shape in SHAPES:
        (run / name).write_text(shape)
        for command in READ[name]:
            call(command)


@pytest.mark.parametrize("side", ["planned", "measured"])
@pytest.mark.parametrize(
    ("field", "odd"),
    [(field, odd) for field in ("peak_bytes", "seconds") for odd in ("x", [], {}, True, 0, -1, 1e300)]
    + [("peak_bytes", None)],
)
def test_impossible_record_counts_as_damage(side, field, odd, run, call):
    result = json.loads((run / "result.json").read_text())
    assert call("history")[0] == 0
    result["forecast"][side][field] = odd
    if field == "seconds":
        result["forecast"]["planned" if side == "measured" else "measured"][field] = 5.0
    (run / "result.json").write_text(json.dumps(result))
    code, said = call("history")
    assert code == 7 and f"{run / 'result.json'} is damaged" in said and field in said


@pytest.mark.parametrize("record", [3, "x", [1], {}, {"quantization": 4}, {"quantization": "none"}])
def test_invalid_record_counts_as_damaged_or_missing(record, run, call):
    result = json.loads((run / "result.json").read_text()) | {"forecast": record}
    (run / "result.json").write_text(json.dumps(result))
    assert call("history")[0] == (7 if record else 2)


def test_metrics_under_two_names_are_not_written_in_place(tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"step": 1}\n{"step": 2}\n')
    before = mine.read_bytes()
    os.link(mine, tmp_path / "metrics.jsonl")
    truncate_metrics(tmp_path / "metrics.jsonl", 1)
    with open_to_append(tmp_path / "metrics.jsonl") as file:
        file.write("more\n")
    assert mine.read_bytes() == before


def test_rewriting_a_file_keeps_its_hard_links(run, call, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    names = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for number, name in enumerate(names):
        os.link(run / name, other / str(number))
    (run / "result.json").unlink()
    assert "reached" in call("resume")[1]
    assert [(other / str(number)).read_bytes() for number in range(len(names))] == list(names.values())


def test_a_name_with_line_feeds_and_escapes_is_shown_visibly(run, call, tmp_path, capsys):
    odd = run.rename(run.with_name("r-1\nError: \x1b[2J"))
    (odd / "origin.json").unlink()
    assert main(["chat", str(odd / "nothing")]) != 0
    assert main(["sft", "recipes/smoke.yaml", "--resume", str(odd)]) == 7
    assert "\x1b" not in capsys.readouterr().err
