"""`lora-chat plan`, and the decisions and records of `sft` that follow from it."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_chat.cli import main
from lora_chat.errors import RecipeError
from lora_chat.pipeline import estimate
from lora_chat.planning import local_device
from lora_chat.planning.settings_search import SFT_PHASES
from lora_chat.training.trainer import PackedSFTTrainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GPU_RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("gpu-*.yaml"))
PHASES = ("load", "train", "evaluate", "generate", "save", "merge", "export")


@pytest.fixture
def run(cache_home, tmp_path, capsys, monkeypatch):
    """Return a function that runs a command; it returns exit code, stdout and stderr."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def sft(run, tmp_path, *words):
    return run("sft", "recipes/smoke.yaml", "--set", f"output.directory={tmp_path / 'runs'}", "--json", *words)


@pytest.fixture
def recipe_plans(monkeypatch):
    """Return the module that writes the planned figures."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("recipe_plans")


def test_the_table_lists_all_gpu_recipes(recipe_plans):
    assert sorted(recipe_plans.CARDS) == GPU_RECIPES
    assert [name.split("-")[1] for name in GPU_RECIPES] == ["12gb", "16gb", "24gb", "8gb"]


@pytest.mark.slow
def test_planned_figures_in_the_readme_are_current(recipe_plans, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = recipe_plans.make_table()
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    shown = text.split("<!-- planned: python benchmarks/recipe_plans.py --write -->\n")[1].split("\n<!-- end of")[0]
    assert table == shown, "update it: python benchmarks/recipe_plans.py --write"
    assert shown.count("| fits |") == len(GPU_RECIPES)


def test_several_cards_are_compared_beside_the_plan_of_one(run):
    words = ("plan", "recipes/smoke.yaml", "--gpu", "A100 SXM4 80GB", "--set", "data.validation_share=0.2")
    one = json.loads(run(*words, "--json")[1])
    several = json.loads(run(*words, "--json", "--gpus", "2")[1])
    table = several.pop("cards")
    seconds = several.pop("total_seconds"), several.pop("seconds")
    assert several == {name: one[name] for name in several}
    assert seconds == (one["total_seconds"], one["seconds"])
    assert [(row["cards"], row["sharded"]) for row in table["rows"]] == [(1, False), (2, False), (2, True)]
    assert table["rows"][0]["peak_bytes"] == one["peak_bytes"]
    assert table["gradient_bytes"] == 4 * one["trainable_parameters"]
    assert table["link"]["name"] == "NVLink (12 links)"
    text = run(*words, "--gpus", "2")[1]
    assert text.startswith(run(*words)[1].rstrip())
    assert "Advice    A second card does not pay off" in text
    assert "No figure for several cards has been measured" in text


@pytest.mark.parametrize("name", [*GPU_RECIPES, "smoke"])
def test_prints_a_table_of_all_phases(run, name):
    code, out, _ = run("plan", f"recipes/{name}.yaml", "--memory", "24GiB")
    assert code == 0
    lines = out.splitlines()
    assert any(line.startswith("Memory    fits: ") for line in lines)
    rows = [line for line in lines if line.split() and line.split()[0] in (*PHASES, "validate")]
    measured = "after each epoch" in next(line for line in lines if line.startswith("Measured "))
    phases = (*PHASES[:2], *(["validate"] if measured else []), *PHASES[2:])
    assert tuple(line.split()[0] for line in rows) == phases
    for row in rows:  # parts add up within the rounding to two digits
        *parts, total = (float(word) if word != "-" else 0 for word in row.replace(" * ", " ").split()[1:])
        assert sum(parts) == pytest.approx(total, abs=0.05)
    for word in ("Training ", "Loss ", "Disk "):
        assert any(line.startswith(word) for line in lines), word


def test_gpu_without_bf16_is_planned_in_fp16(run):
    """Memory is the same as with bf16. In fp32 the time is unknown, because data sheets give the speed in 16 bits."""
    words = ("plan", "recipes/smoke.yaml", "--set", "quantization.mode=none", "--json", "--gpu")
    plans = {}
    for name, gpu, dtype in (("T4", "T4", "auto"), ("4090", "RTX 4090", "auto"), ("fp32", "T4", "float32")):
        code, out, _ = run(*words, gpu, "--set", f"quantization.dtype={dtype}")
        assert code == 0
        plans[name] = json.loads(out)
    weights = {name: plan["phases"][0]["weights"] for name, plan in plans.items()}
    assert weights["T4"] == weights["4090"] < weights["fp32"]
    assert plans["T4"]["total_seconds"] and plans["fp32"]["total_seconds"] is None


def test_json_prints_one_object(run):
    code, out, _ = run("plan", "recipes/gpu-8gb-4bit.yaml", "--gpu", "3070", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["verdict"] == "fits"
    assert report["peak_bytes"] == max(phase["total"] for phase in report["phases"] if phase["name"] in SFT_PHASES)
    assert report["peak_bytes"] <= report["device"]["limit"]
    assert report["total_seconds"]["low"] < report["total_seconds"]["likely"] < report["total_seconds"]["high"]
    assert report["download_bytes"] == pytest.approx(6.17e9, rel=0.01)


def test_suggests_a_change_that_fits(run):
    fixed = ["--set", "training.micro_batch_size=16", "--set", "training.gradient_checkpointing=false"]
    _, out, _ = run("plan", "recipes/gpu-8gb-4bit.yaml", "--memory", "6GiB", "--json", *fixed)
    report = json.loads(out)
    assert report["verdict"] == "does not fit"
    change = [word for setting in report["change"]["settings"] for word in ("--set", setting)]
    _, out, _ = run("plan", "recipes/gpu-8gb-4bit.yaml", "--memory", "6GiB", "--json", *fixed, *change)
    after = json.loads(out)
    assert after["verdict"] != "does not fit"
    assert after["peak_bytes"] == report["change"]["peak"]
    assert after["workload"]["steps"] == report["workload"]["steps"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["recipes/smoke.yaml", "--gpu", "RTX 4091"], 2, "Similar names: GeForce RTX 4090"),
        (["recipes/smoke.yaml", "--memory", "lots"], 2, "--memory: lots is not a size of memory"),
        (["recipes/smoke.yaml", "--set", "training.memory=lots"], 2, "training.memory"),
        (["recipes/smoke.yaml", "--set", "base.name=nobody/knows-it"], 8, "not one of the known bases"),
        (["recipes/smoke.yaml", "--set", "adapter.experts=true"], 2, "this base has no experts"),
        (["recipes/smoke.yaml", "--set", "adapter.rank=128", "--set", "adapter.initialization=pissa"], 2, "has only"),
        ([], 2, "No recipe is given"),
        (["recipes/smoke.yaml", "--gpus", "2"], 2, 'Fix: name it, such as --gpu "RTX 4090"'),
        (["recipes/smoke.yaml", "--gpus", "2", "--gpu", "RTX 4091"], 2, "Similar names: GeForce RTX 4090"),
        *(
            (["recipes/smoke.yaml", "--gpus", n], 2, "not a number of cards")
            for n in ("0", "-1", "65", "2.0", "9" * 99)
        ),
        (["recipes/none.yaml"], 2, "Cannot read the recipe"),
    ],
)
def test_wrong_arguments_give_one_message(run, words, code, message):
    exit_code, out, err = run("plan", *words)
    assert (exit_code, out) == (code, "")
    assert message in err


def test_a_base_that_cannot_be_planned_trains_only_with_unlimited_memory(run, tmp_path, monkeypatch):
    def fail(plan, base):
        raise RecipeError("base.name: no memory can be planned")

    monkeypatch.setattr(estimate, "find_shape", fail)
    assert run("plan", "recipes/smoke.yaml")[0] == 2
    code, _, err = sft(run, tmp_path, "--set", "training.max_steps=1")
    assert code == 2
    assert "no memory can be planned" in err
    code, _, err = sft(
        run,
        tmp_path,
        "--set",
        "training.max_steps=1",
        "--set",
        "training.memory=unlimited",
        "--set",
        "evaluation.samples=0",
    )
    assert code == 0
    assert "No estimate: " in err


def test_sft_shows_its_estimate_and_records_the_measurement(run, tmp_path):
    code, out, err = sft(run, tmp_path)
    assert code == 0
    assert "Memory    fits: " in err
    assert "Planned " in err
    record = json.loads(out)["forecast"]
    assert record["planned"]["peak_bytes"] > 0
    assert record["measured"]["peak_bytes"] == json.loads(out)["peak_memory_bytes"]
    folder = tmp_path / "runs" / "smoke-1"
    assert json.loads((folder / "forecast.json").read_text())["peak_bytes"] == record["planned"]["peak_bytes"]
    words = ["plan", "--history", "recipes/smoke.yaml", "--set", f"output.directory={tmp_path / 'runs'}"]
    _, out, _ = run(*words)
    assert "smoke-1" in out
    assert "memory: off by" in out
    assert json.loads(run(*words, "--json")[1])[0]["run"] == "smoke-1"


def test_history_without_runs_gives_one_message(run, tmp_path):
    words = ["plan", "--history", "recipes/smoke.yaml", "--set", f"output.directory={tmp_path / 'runs'}"]
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "No finished run" in err


def test_sft_refuses_a_run_that_cannot_fit_before_weights_load(run, tmp_path, monkeypatch):
    loader = "lora_chat.pipeline.load_adapted.load_base_model"
    monkeypatch.setattr(loader, lambda *_: pytest.fail("weights were loaded"))
    code, out, err = sft(run, tmp_path, "--set", "training.memory=100MiB")
    assert (code, out) == (5, "")
    assert "The run does not fit: `" in err
    assert "GiB are free" in err
    assert "training.memory=unlimited" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_dry_run_uses_the_largest_planned_micro_batch(run, tmp_path, monkeypatch):
    tried, planned = [], []
    stock = PackedSFTTrainer.dry_run_step

    def dry_run_step(self, inputs):
        tried.append(inputs["input_ids"].numel())
        stock(self, inputs)

    make = estimate.estimate_run
    monkeypatch.setattr(PackedSFTTrainer, "dry_run_step", dry_run_step)
    monkeypatch.setattr(estimate, "estimate_run", lambda *given: planned.append(make(*given)) or planned[-1])
    for budget in (64, 150, 4096):
        assert sft(run, tmp_path, "--set", f"training.micro_batch_tokens={budget}")[0] == 0
    assert tried == [report.workload.largest.tokens for report in planned]
    assert len(set(tried)) == 3


def test_resumed_run_keeps_its_decisions(run, tmp_path, monkeypatch):
    assert sft(run, tmp_path)[0] == 0
    plan = json.loads((tmp_path / "runs" / "smoke-1" / "plan.json").read_text())
    chosen = plan["training"]["micro_batch_tokens"]
    monkeypatch.setattr(
        estimate, "choose_plan", lambda plan, *_: pytest.fail("chosen again") if plan.open_settings else plan
    )
    words = ["--resume", "--set", "training.epochs=3", "--accept-change", "training.epochs"]
    words += ["--set", "training.memory=2GiB"]  # the earlier decision stays
    assert sft(run, tmp_path, *words)[0] == 0
    after = json.loads((tmp_path / "runs" / "smoke-1" / "plan.json").read_text())
    assert after["training"]["micro_batch_tokens"] == chosen


# Runs each line of its input as a command in a fork. A fork of the tests would have the memory of all their modules.
LOW_MEMORY_DRIVER = """
import json, os, sys
import bitsandbytes, peft, torch, trl.trainer.sft_trainer
from lora_chat.planning import local_device
from lora_chat.system import memory_limit
local_device.free_memory_bytes = memory_limit.free_memory_bytes = lambda: 350_000_000
from lora_chat.cli import main
os.chdir(sys.argv[1])
for line in sys.stdin:
    words, output = json.loads(line)
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(output, "w")
        os.dup2(sys.stderr.fileno(), 2)
        code = main(words)
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif("LORA_CHAT_ALL_BASES" not in os.environ, reason="on demand: LORA_CHAT_ALL_BASES=1")
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited only on Linux")
def test_refused_runs_do_fail_without_the_plan(cache_home, tmp_path):
    """Simulates a machine with 350 MB of free memory; the micro-batches have up to 50 dialogues."""
    pairs = [
        ({"role": "user", "content": f"{i} " * 75}, {"role": "assistant", "content": f"{i}b " * 120}) for i in range(70)
    ]
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps({"messages": pair}) + "\n" for pair in pairs))
    settings = {
        "data.train": data,
        "data.max_length": 1024,
        "training.effective_batch_size": 50,
        "training.micro_batch_tokens": 100_000,
        "training.gradient_checkpointing": "false",
        "training.max_steps": 1,
        "audit.near_leak": "ignore",
        "evaluation.samples": 0,
        "output.directory": tmp_path / "runs",
    }

    commands = []
    for number, changed in enumerate(({}, {"training.memory": "unlimited"}, {"training.micro_batch_tokens": "auto"})):
        words = [word for key, value in (settings | changed).items() for word in ("--set", f"{key}={value}")]
        commands.append((["sft", "recipes/smoke.yaml", *words], str(tmp_path / f"said-{number}")))
    lines = "".join(json.dumps(command) + "\n" for command in commands)
    driver = [sys.executable, "-c", LOW_MEMORY_DRIVER, str(ROOT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(driver, input=lines, capture_output=True, text=True, env=environment, timeout=280)
    outputs = [Path(path).read_text() for _, path in commands]
    assert done.stdout.split() == ["5", "5", "0"], (done.stderr, outputs)
    assert "The run does not fit" in outputs[0]
    assert "Out of memory" in outputs[1]


def test_memory_of_this_process_counts_as_free(monkeypatch):
    from lora_chat.system.hardware import Hardware

    monkeypatch.setattr(local_device, "free_memory_bytes", lambda: 10**9)
    device = local_device.detect_local_device(Hardware("cpu", "x", 2**40, True, 2))
    assert 10**9 < device.free < 10**9 + 10**10
