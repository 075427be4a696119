"""The commands run on an emulated card."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def record_training():
    """Record the device of the model that is trained."""
    import lora_chat.pipeline.fine_tune as module

    seen, train = {}, module.train_sft

    def recorded(run):
        seen.update(device=str(run.model.device), fast_path=bool(run.plan.fast_path))
        return train(run)

    module.train_sft = recorded
    return lambda: seen


def run_sft(card, folder, *settings, **options):
    words = ["sft", ROOT / "recipes/smoke.yaml", *(word for setting in settings for word in ("--set", setting))]
    return card.command(words, prepare=record_training, cwd=folder, **options)


@pytest.mark.parametrize("mode", ["none", "4bit"])
def test_sft_trains_on_the_card(card, tmp_path, mode):
    done = run_sft(card, tmp_path, f"quantization.mode={mode}", "training.fast_path=true")
    assert (done.exit_code, done.result) == (0, {"device": "cuda:0", "fast_path": True}), done.stderr
    assert "does not run" not in done.stderr
