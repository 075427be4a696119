"""Runs of two processes from the recipe to the report, beside the same run of one process."""

import gc
import json
import os
import random
import tempfile
from pathlib import Path

import pytest
from ranks import run_ranks

from lora_chat.errors import StoppedError
from lora_chat.processes.group import ProcessGroup, current_group, use_group

pytestmark = pytest.mark.slow  # imports libraries in a server of processes

ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
WORDS = ["red", "blue", "green", "one", "two", "three", "cat", "dog", "sun", "moon", "tree", "river", "stone", "paper"]
RECIPE = """
base: {name: tiny-random, device: cpu}
quantization: {mode: none, dtype: float32}
adapter: {rank: 4}
data: {train: train.jsonl, validation_share: 0.25}
training: {max_steps: 6, effective_batch_size: 6, learning_rate: 0.003}
evaluation: {samples: 2, replies: 9, max_new_tokens: 8, questions: questions.jsonl}
"""
CASES = {
    "general items": ["evaluation.general=all"],
    "prompt control": ["training.max_steps=40"],
    "each epoch": ["evaluation.each_epoch=true"],
    "early stopping": ["evaluation.every_steps=1", "training.early_stopping=1", "training.learning_rate=0.02"],
    "best step": ["evaluation.every_steps=2", "training.keep=best", "training.learning_rate=0.02"],
    "stock path": ["training.fast_path=false"],
    "PiSSA": ["adapter.initialization=pissa"],
    "OLoRA": ["adapter.initialization=olora"],
    "LoftQ": ["adapter.initialization=loftq", "quantization.mode=4bit"],
    "modules to save": ["adapter.modules_to_save=[embed_tokens]"],
    "trained tokens": ["adapter.trainable_tokens=[5,6]"],
    "new tokens": ["adapter.new_tokens=['<cmd>','<end>']"],
    "noise": ["training.neftune_alpha=5"],
    "test set": ["data.test_share=0.2"],
    "no held-out data": ["data.validation_share=0"],
    "recital": ["evaluation.recital=20"],
    "sampled replies": ["evaluation.generation.temperature=0.7"],
    "continued": ["adapter.start={parent}"],
    "stacked": ["adapter.start={parent}", "adapter.stack=merge_first", "adapter.rank=2"],
}
VOLATILE = {"run", "seconds", "forecast", "peak_memory_bytes", "processes"}


@pytest.fixture(scope="module")
def data(cache_home, tmp_path_factory):
    """Return a folder with a recipe and its data."""
    folder, randoms = tmp_path_factory.mktemp("data"), random.Random(1)
    with (folder / "train.jsonl").open("w") as file:
        for number in range(40):
            first, second = randoms.choices(WORDS, k=2)
            question = f"Say {first} and {second}, number {number} " + "please " * randoms.randint(0, 6)
            reply = f"{first} {second} and then {second} {first} " * randoms.randint(1, 3)
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
            file.write(json.dumps({"messages": messages}) + "\n")
    (folder / "questions.jsonl").write_text(json.dumps({"question": "Say red.", "accept": ["red"]}) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def parent(data, tmp_path_factory):
    """Return a run that others continue."""
    out = tmp_path_factory.mktemp("parent")
    run_ranks(1, train, data / "recipe.yaml", out, ["training.max_steps=2"])
    return out / "run-1"


def train(recipe_path, out, settings, resume=None):
    """Take part in a run. Return its result, and the names of scratch files that are left."""
    from lora_chat.config.load import read_recipe
    from lora_chat.pipeline.fine_tune import fine_tune
    from lora_chat.pipeline.follow_run import follow_run
    from lora_chat.pipeline.resume import ResumeRequest
    from lora_chat.pipeline.run_status import RunProgress

    scratch = Path(tempfile.mkdtemp())
    tempfile.tempdir = str(scratch)
    recipe = read_recipe(str(recipe_path), [*settings, f"output.directory={out}", "output.name=run"])
    if current_group().is_first:
        result = fine_tune(recipe, RunProgress(), ResumeRequest(str(resume), [], False) if resume else None).as_dict()
    else:
        result = follow_run(recipe, RunProgress())
    return result, [path.name for path in scratch.iterdir()]


def train_and_repeat(recipe_path, out, settings):
    """Take part in a run whose first process measures everything a second time, by itself."""
    from lora_chat.pipeline import compare

    stock, reports = compare.compare_with_base, []

    def compare_twice(*args, **kwargs):
        reports.append(stock(*args, **kwargs))
        with use_group(ProcessGroup()):
            reports.append(stock(*args, **kwargs))
        return reports[0]

    compare.compare_with_base = compare_twice
    compare.write_loss_plot = lambda *args: None  # because matplotlib is slow to import
    gc.freeze()
    try:
        result, left = train(recipe_path, out, settings)
    finally:
        compare.compare_with_base = stock
    return result, left, [[report.as_dict(), report.measurements] for report in reports]


def test_two_processes_measure_the_bits_of_one(data, tmp_path):
    settings = ["training.max_steps=2", "evaluation.every_steps=1"]
    (result, left, reports), (nothing, left_by_other, _) = run_ranks(
        2, train_and_repeat, data / "recipe.yaml", tmp_path, settings
    )
    assert reports[0] == reports[1]
    assert (nothing, left, left_by_other) == (None, [], [])
    assert (result["processes"], result["steps"]) == (2, 2)
    assert json.loads((tmp_path / "run-1" / "comparison.json").read_text())["figures"]
    assert [path.name for path in tmp_path.iterdir()] == ["run-1"]


def read_run(run):
    """Return the figures and texts of a run, and the names of its files."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    content = [json.loads((run / name).read_text()) for name in ("comparison.json", "result.json")]
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return flatten([lines, *content]), names


def flatten(value, path=""):
    """Return the leaves of a JSON value by their path, without values that no two runs share."""
    if isinstance(value, dict):
        parts = [(f"{path}/{key}", part) for key, part in value.items() if key not in VOLATILE]
    elif isinstance(value, list):
        parts = [(f"{path}/{index}", part) for index, part in enumerate(value)]
    else:
        return {path: value}
    return {name: leaf for name_of_part, part in parts for name, leaf in flatten(part, name_of_part).items()}


def assert_equal_but_for_rounding(actual, expected):
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        if isinstance(value, float) and not path.endswith(("seconds", "per_second")):
            # Steps that are too large amplify the rounding, and the norm of a gradient shows it first.
            tolerance = 1e-2 if path.endswith("gradient_norm") else 1e-3
            assert actual[path] == pytest.approx(value, rel=tolerance, abs=1e-3), path
        elif not isinstance(value, float):
            assert actual[path] == value, path


@ON_DEMAND
@pytest.mark.parametrize("case", CASES)
def test_run_of_two_processes_equals_that_of_one(data, parent, tmp_path, case):
    settings = [setting.replace("{parent}", str(parent)) for setting in CASES[case]]
    runs = []
    for count in (1, 2):
        out = tmp_path / str(count)
        out.mkdir()
        results = run_ranks(count, train, data / "recipe.yaml", out, settings)
        assert [left for _, left in results] == [[]] * count
        runs.append(read_run(out / "run-1"))
    (expected, expected_names), (actual, names) = runs
    assert names == expected_names
    assert_equal_but_for_rounding(actual, expected)


def train_until_stopped(recipe_path, out, settings, step):
    """Take part in a run whose last process gets a signal after a step. Return the message."""
    from lora_chat.training.callbacks.agreement import StepAgreement

    stock = StepAgreement.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step and current_group().rank.index == current_group().size - 1:
            self._stop_request.received = 15
        return stock(self, args, state, control, **kwargs)

    StepAgreement.on_step_end = on_step_end
    try:
        train(recipe_path, out, settings)
    except StoppedError as error:
        return str(error)
    finally:
        StepAgreement.on_step_end = stock
    raise AssertionError("the run was not stopped")


@ON_DEMAND
@pytest.mark.parametrize(("count", "then"), [(2, 2), (2, 1), (1, 2), (3, 2)])
def test_continues_with_another_number_of_processes(data, tmp_path, count, then):
    settings = ["evaluation.every_steps=2", "training.keep=best"]
    recipe = data / "recipe.yaml"
    (tmp_path / "whole").mkdir()
    run_ranks(1, train, recipe, tmp_path / "whole", settings)
    messages = run_ranks(count, train_until_stopped, recipe, tmp_path, settings, 3)
    assert "Stopped after step 3 of 6; its checkpoint is saved." in messages[0]
    run_ranks(then, train, recipe, tmp_path, settings, tmp_path / "run-1")
    (actual, _), (expected, _) = (read_run(folder / "run-1") for folder in (tmp_path, tmp_path / "whole"))
    assert_equal_but_for_rounding(actual, expected)
