"""Whole runs of several processes on a sharded base: the same files as on a whole base, and they can be resumed."""

import json
import os
from pathlib import Path

import pytest
from ranks import RankError, run_ranks

from lora_chat.config.load import read_recipe
from lora_chat.config.plan import make_plan
from lora_chat.errors import RecipeError
from lora_chat.models.quantization.weight_cache import disable_weight_cache
from lora_chat.pipeline.fine_tune import fine_tune
from lora_chat.pipeline.follow_run import follow_run
from lora_chat.pipeline.resume import ResumeRequest
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.pipeline.shard_choice import settle_sharding
from lora_chat.processes.group import current_group
from lora_chat.system.hardware import Hardware

pytestmark = pytest.mark.slow  # imports libraries in a server of processes

ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")
RECIPE = "recipes/smoke.yaml"
CASES = {
    "4 bits": (2, {"quantization.mode": "4bit", "training.gradient_checkpointing": "1"}),
    "fewer dialogues than processes": (3, {"training.micro_batch_size": "1"}),
    "stock path": (2, {"training.fast_path": "false", "training.micro_batch_size": "1", "adapter.dropout": "0.2"}),
    "DoRA": (2, {"quantization.mode": "4bit", "adapter.variant": "dora"}),
    "8 validation rows": (2, {"data.validation_share": "0.5", "evaluation.recital": "2"}),
}
"""Number of processes and settings."""


def _run(settings, resume=None, accepted=()) -> str | None:
    """Take part in a run and return its folder in the first process."""
    disable_weight_cache()  # a sharded base has no cached weights, and those are multiplied with other rounding
    recipe = read_recipe(RECIPE, [f"{name}={value}" for name, value in settings.items()])
    if not current_group().is_first:
        follow_run(recipe, RunProgress())
        return None
    return str(fine_tune(recipe, RunProgress(), ResumeRequest(resume, accepted, False) if resume else None).run)


def _train(count, tmp_path, *, shard, **settings) -> Path:
    settings = {"output.directory": str(tmp_path), "evaluation.each_epoch": "true", "checkpoint.keep": "9", **settings}
    return Path(run_ranks(count, _run, {**settings, "base.shard": str(shard).lower()})[0])


def _read_metrics(run) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def _read_comparison(run) -> dict:
    report = json.loads((run / "comparison.json").read_text())
    return {name: value for name, value in report.items() if "seconds" not in name}


def _list_files(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@ON_DEMAND
@pytest.mark.parametrize("case", CASES)
def test_sharded_run_writes_the_files_of_a_whole_base(cache_home, tmp_path, case):
    count, settings = CASES[case]
    whole = _train(count, tmp_path / "whole", shard=False, **settings)
    sharded = _train(count, tmp_path / "sharded", shard=True, **settings)
    assert json.loads((sharded / "plan.json").read_text())["base"]["shard"] is True
    assert _list_files(sharded) == _list_files(whole)
    for name in _list_files(whole):
        if name.endswith(".safetensors"):
            assert (sharded / name).read_bytes() == (whole / name).read_bytes(), name
    assert _read_metrics(sharded) == _read_metrics(whole)
    assert _read_comparison(sharded) == _read_comparison(whole)


@ON_DEMAND
@pytest.mark.parametrize(
    ("before", "after"), [((2, True), (1, False)), ((1, False), (2, True)), ((2, True), (3, True))]
)
def test_sharded_run_continues_with_the_other_choice(cache_home, tmp_path, before, after):
    run = _train(before[0], tmp_path, shard=before[1], **{"training.epochs": "1"})
    settings = {"output.directory": str(tmp_path), "training.epochs": "2", "base.shard": str(after[1]).lower()}
    settings |= {"evaluation.each_epoch": "true", "checkpoint.keep": "9"}
    resumed = run_ranks(after[0], _run, settings, str(run), ("training.epochs",))[0]
    assert Path(resumed) == run
    assert [row["step"] for row in _read_metrics(run) if "loss" in row] == [1, 2, 3, 4]
    assert json.loads((run / "result.json").read_text())["steps"] == 4


@ON_DEMAND
def test_refuses_8_bits_before_weights_load(cache_home, tmp_path):
    with pytest.raises(RankError, match=r"a base in 8 bits cannot be sharded.*Fix: --set quantization.mode=4bit"):
        _train(2, tmp_path, shard=True, **{"quantization.mode": "8bit"})
    assert not list(tmp_path.glob("*"))


def _plan(**settings):
    recipe = read_recipe(RECIPE, [f"{name}={value}" for name, value in settings.items()])
    return make_plan(recipe, Hardware("cpu", "test", 2**34, True, 2))


@pytest.mark.parametrize("value", ["true", "auto", "false"])
def test_one_process_never_shards(value, messages):
    assert settle_sharding(_plan(**{"base.shard": value}), 1).base.shard is False
    assert messages == ["base.shard has no effect, because one process trains: it needs the whole base."] * (
        value == "true"
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"quantization.mode": "8bit"}, "8 bits cannot be sharded"),
        ({"adapter.start": "runs/smoke-1", "adapter.stack": "merge_first"}, "a parent cannot be merged"),
    ],
)
def test_refuses_bases_that_cannot_be_sharded(settings, problem):
    with pytest.raises(RecipeError, match=f"base.shard: .*{problem}.*Fix: "):
        settle_sharding(_plan(**settings, **{"base.shard": "true"}), 2)
    settle_sharding(_plan(**settings), 2)
