"""The commands do their work on an emulated card, from training to export."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/smoke.yaml"


def record_training():
    """Record the device of the model that is trained."""
    import lora_chat.pipeline.fine_tune as module

    seen, train = {}, module.train_sft

    def recorded(run):
        result = train(run)
        seen.update(device=str(run.model.device), fast_path=bool(result.plan.fast_path))
        return result

    module.train_sft = recorded
    return lambda: seen


def run_sft(card, folder, *settings, **options):
    words = ["sft", RECIPE, *(word for setting in settings for word in ("--set", setting))]
    return card.command(words, prepare=record_training, cwd=folder, **options)


@pytest.fixture(scope="module", params=["4bit", "none"] if "LORA_CHAT_ALL_CUDA" in os.environ else ["4bit"])
def trained(card, request, tmp_path_factory):
    """Return the folder in which `runs/smoke-1` was trained on a card, and the end of that command."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run_sft(card, folder, f"quantization.mode={request.param}", "training.fast_path=true")


def test_sft_trains_on_the_fast_path(trained):
    folder, done = trained
    assert (done.exit_code, done.result) == (0, {"device": "cuda:0", "fast_path": True}), done.stderr
    assert "Emulated card" in done.stderr or "on cuda" in done.stderr
    for fallback in ("does not run", "not fused", "slower", "Out of memory"):
        assert fallback not in done.stderr
    losses = [json.loads(line)["loss"] for line in (folder / "runs/smoke-1/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_sft_trains_on_the_stock_path_in_eight_bits(card, tmp_path):
    done = run_sft(card, tmp_path, "quantization.mode=8bit", "training.fast_path=false")
    assert (done.exit_code, done.result) == (0, {"device": "cuda:0", "fast_path": False}), done.stderr


def test_eval_repeats_the_figures_of_training(card, trained):
    folder, _ = trained
    before = json.loads((folder / "runs/smoke-1/result.json").read_text())
    done = card.command(["eval", "runs/smoke-1", "--json"], cwd=folder)
    assert done.exit_code == 0, done.stderr
    assert done.operations["mm"] > 0
    after = json.loads(done.stdout)
    for model in ("base", "adapted"):
        assert after["validation_loss"][model] == pytest.approx(before["validation_loss"][model], abs=1e-5)


def test_chat_answers_on_the_card(card, trained):
    folder, _ = trained
    words = ["chat", "runs/smoke-1", "--max-new-tokens", "4"]
    done = card.command(words, cwd=folder, stdin="Which day comes after Monday?\n")
    assert done.exit_code == 0, done.stderr
    assert done.operations["mm"] > 0 and done.peaks[0] > 0


def test_merge_passes_its_check(card, trained):
    folder, _ = trained
    done = card.command(["merge", "runs/smoke-1", "--to", "merged"], cwd=folder)
    assert done.exit_code == 0, done.stderr
    assert (folder / "merged/model.safetensors").exists()
    assert done.peaks[0] > 0


def test_export_for_peft_passes_its_check(card, trained):
    folder, _ = trained
    done = card.command(["export", "runs/smoke-1", "--to", "peft", "--out", "for-peft"], cwd=folder)
    assert done.exit_code == 0, done.stderr
    assert (folder / "for-peft/adapter_model.safetensors").exists()
    assert done.peaks[0] > 0


def test_plan_describes_the_card(card, tmp_path):
    done = card.command(["plan", RECIPE], cwd=tmp_path, memory=8 * 2**30)
    assert done.exit_code == 0, done.stderr
    assert "8.00 GiB" in done.stdout + done.stderr
