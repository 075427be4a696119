"""The main job as a user runs it, with the smoke recipe and in slow tests with the embedded base."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest

from lora_chat.cli import main


def run(*arguments, stdin="", program=("-m", "lora_chat")):
    done = subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=280,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def here(*arguments, stdin=""):
    """Run a command in this process, which is faster, and return its stdout."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main(list(map(str, arguments)))
    assert code == 0, err.getvalue()
    return out.getvalue()


# Runs a command with a plan that needs no benchmark of the machine, which takes half a minute for the embedded base.
WITHOUT_BENCHMARK = """
import sys
from lora_chat.pipeline import machine_benchmark
machine_benchmark.MIN_BASE_WEIGHTS = 10**12
from lora_chat.cli import main
sys.exit(main(sys.argv[1:]))
"""
ON_DEMAND = pytest.mark.skipif(os.environ.get("LORA_CHAT_ALL_BASES") != "1", reason="on demand")

RESULT_KEYS = {
    "run",
    "seconds",
    "steps",
    "planned_steps",
    "last_step",
    "kept_step",
    "kept_because",
    "supervised_tokens",
    "peak_memory_bytes",
    "adapter_bytes",
    "trainable_parameters",
    "validation_loss",
    "perplexity",
    "token_accuracy",
    "exact_match",
    "token_f1",
    "verdict",
    "set",
    "overlap",
    "forecast",
}


@pytest.mark.slow
def test_sft_chat_eval_merge_on_the_smoke_recipe(cache_home, tmp_path):
    settings = ["--set", f"output.directory={tmp_path}", "--set", "evaluation.recital=2"]
    done = run("sft", "recipes/smoke.yaml", "--json", *settings)
    assert len(done.stdout.splitlines()) == 1
    result = json.loads(done.stdout)
    assert set(result) == RESULT_KEYS | {"recital"}
    assert set(result["seconds"]) == {"load", "train", "total"}
    assert result["validation_loss"]["adapted"] < result["validation_loss"]["base"]
    folder = tmp_path / "smoke-1"
    assert {p.name for p in folder.iterdir()} == {
        ".lock",
        "adapter",
        "audit.json",
        "checkpoints",
        "comparison.json",
        "data.json",
        "forecast.json",
        "identity.json",
        "loss.png",
        "metrics.jsonl",
        "origin.json",
        "plan.json",
        "recipe.yaml",
        "reference.json",
        "report.html",
        "result.json",
        "training_digests.safetensors",
        "validation.jsonl",
        "versions.json",
    }
    assert {p.name for p in (folder / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "lora_chat.json",
    }
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")

    again = json.loads(here("eval", folder, "--json"))
    for side in ("base", "adapted"):
        assert again["validation_loss"][side] == pytest.approx(result["validation_loss"][side], abs=1e-6)
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert comparison["recital"] == again["recital"] == result["recital"]  # measured once, at the end of training
    assert (result["recital"]["replies"], result["recital"]["adapted"]) == (2, 0)

    replies = here("chat", folder, "--json", "--max-new-tokens", 4, stdin="hello\n/reset\nhi\n").splitlines()
    assert [json.loads(line)["role"] for line in replies] == ["assistant", "assistant"]
    assert here("chat", folder / "adapter", "--json", "--max-new-tokens", 4, stdin="hello\n").count("\n") == 1

    merged = json.loads(here("merge", folder, "--to", tmp_path / "merged", "--json"))
    assert merged["proof"]["mean_kl"] < 1e-2
    out = here("chat", tmp_path / "merged", "--json", "--max-new-tokens", 4, stdin="hello\n")
    assert json.loads(out) == json.loads(replies[0])


@pytest.mark.slow
def test_second_run_gets_the_next_number_and_the_resolved_recipe_runs(cache_home, tmp_path, capsys):
    settings = ["--set", f"output.directory={tmp_path}", "--set", "training.max_steps=1"]
    assert main(["sft", "recipes/smoke.yaml", "--json", *settings]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["sft", str(tmp_path / "smoke-1" / "recipe.yaml"), "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert [result["run"] for result in (first, second)] == [str(tmp_path / "smoke-1"), str(tmp_path / "smoke-2")]
    assert first["validation_loss"] == second["validation_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("benchmarked", [False, pytest.param(True, marks=ON_DEMAND)], ids=["estimated", "benchmarked"])
def test_embedded_base_learns_and_its_4bit_merge_agrees(cache_home, tmp_path, benchmarked):
    settings = {
        "output.directory": tmp_path,
        "data.validation_share": 0.015,
        "training.max_steps": 5,
        "training.effective_batch_size": 4,
        "evaluation.questions": "null",
        "evaluation.general": "off",
        "evaluation.samples": 1,
        "evaluation.replies": 1,
        "evaluation.max_new_tokens": 8,
        "evaluation.recital": 0,
    }
    arguments = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    program = ("-m", "lora_chat") if benchmarked else ("-c", WITHOUT_BENCHMARK)
    # A new process, because its peak memory is measured.
    done = run("sft", "recipes/quickstart.yaml", "--json", *arguments, program=program)
    result = json.loads(done.stdout)
    record = result["forecast"]
    # The peak is 1 to 2 % above the estimate in a single run, and 12 % in the whole suite for an unknown reason.
    assert record["measured"]["peak_bytes"] == pytest.approx(record["planned"]["peak_bytes"], rel=0.2)
    assert ("Benchmarking this machine" in done.stderr) == benchmarked
    assert result["validation_loss"]["adapted"] < result["validation_loss"]["base"] - 0.3
    assert result["adapter_bytes"] < 12e6
    merged = json.loads(here("merge", tmp_path / "quickstart-1", "--to", tmp_path / "merged", "--json"))
    assert merged["proof"]["mean_kl"] < 1e-2
    assert merged["proof"]["same_top_token"] > 0.9
