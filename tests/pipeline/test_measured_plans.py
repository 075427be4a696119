"""Plans of bases without formulas: the memory gate holds for every architecture that `sft` accepts."""

import json

import pytest

from lora_chat.cli import main

pytestmark = pytest.mark.slow  # many models are loaded

RECIPE = "recipes/smoke.yaml"


@pytest.fixture(scope="module")
def base(random_base):
    return str(random_base("qwen3_moe"))


def test_plan_measures_a_base_without_formulas(base, capsys):
    assert main(["plan", RECIPE, "--set", f"base.name={base}", "--memory", "4GiB", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["memory_from"] == "dry run"
    assert estimate["verdict"] == "fits"
    assert estimate["seconds"] is None
    assert estimate["trainable_parameters"] > 0


def test_sft_refuses_what_does_not_fit(base, tmp_path, capsys):
    settings = [f"base.name={base}", "training.memory=64MiB", f"output.directory={tmp_path}", "base.device=cpu"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert main(["sft", RECIPE, *arguments]) == 5
    assert "does not fit" in capsys.readouterr().err
    assert not list(tmp_path.glob("*"))


def test_the_plan_has_room_for_padded_rows(base, capsys):
    def plan(*settings):
        arguments = [
            part for setting in (f"base.name={base}", "base.device=cpu", *settings) for part in ("--set", setting)
        ]
        assert main(["plan", RECIPE, *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["workload"]["largest"]["tokens"]

    assert plan() >= plan("training.fast_path=false", "training.micro_batch_size=4")
