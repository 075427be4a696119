"""Training in fp16 with a gradient scaler on an emulated Turing card, and use of such a run there and on a CPU."""

import json
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TURING = (7, 5)
LENGTHS = [9 + n for n in (0, 5, 11, 2, 8, 4, 13, 3, 6, 1, 10, 7)]


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def set_initial_scale(scale):
    """Replace the initial scale of gradient scalers, which is 65,536."""
    from torch.amp import GradScaler

    GradScaler.__init__.__defaults__ = ("cuda", scale, *GradScaler.__init__.__defaults__[2:])


def train(
    folder,
    device="cuda",
    mode="none",
    init_scale=2.0**16,
    resume=False,
    base="tiny-random",
    dtype="auto",
    adapter=None,
    **settings,
):
    """Train an adapter in fp16 on the card, or in fp32 on the CPU. Return the model and the rows of its metrics."""
    from lora_chat.config.plan import make_plan, plan_precision
    from lora_chat.config.recipe import AdapterSection, BaseSection, CheckpointSection, QuantizationSection, Recipe
    from lora_chat.models.adapter import attach_adapter
    from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
    from lora_chat.pipeline.machine_benchmark_worker import make_random_rows
    from lora_chat.runs.checkpoints import find_newest_checkpoint
    from lora_chat.system.hardware import Hardware, detect_hardware
    from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
    from lora_chat.training.sft import train_sft
    from lora_chat.training.training_run import TrainingRun

    set_initial_scale(init_scale)
    hardware = detect_hardware() if device == "cuda" else Hardware("cpu", "test", 0, False, 1)
    precision = plan_precision(QuantizationSection(mode=mode, dtype=dtype), hardware)
    expected_dtype = "float16" if device == "cuda" and dtype == "auto" else "float32"
    assert (precision.device, precision.dtype) == (device, expected_dtype)
    folder, local_base = Path(folder), find_base(BaseSection(name=base))
    folder.mkdir(exist_ok=True)
    section = AdapterSection(rank=4, **(adapter or {}))
    model = attach_adapter(load_base_model(local_base, precision), section, 3)
    defaults = {"max_steps": 8, "learning_rate": 1e-2, "effective_batch_size": 4, "gradient_checkpointing": False}
    recipe = {"data": {"train": "x"}, "training": defaults | {"fast_path": False} | settings}
    newest = find_newest_checkpoint(folder / "checkpoints")[0] if resume else None
    run = TrainingRun(
        model=model,
        tokenizer=load_tokenizer(local_base),
        train_rows=make_random_rows(LENGTHS, 0.5, 259, 4),
        validation_rows=[],
        plan=make_plan(Recipe.model_validate(recipe), hardware).training,
        metrics_path=folder / "metrics.jsonl",
        bfloat16=False,
        float16=precision.dtype == "float16",
        checkpoint_policy=CheckpointPolicy(
            folder / "checkpoints", CheckpointSection(every_steps=1, keep=9), {"a": 1}, newest
        ),
    )
    train_sft(run)
    return model, [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def compare_with_cpu(folder, mode):
    from lora_chat.evaluation.loss import evaluate_loss
    from lora_chat.pipeline.machine_benchmark_worker import make_random_rows

    rows = make_random_rows(LENGTHS, 0.5, 259, 4)
    found = {}
    for device in ("cuda", "cpu"):
        model, metrics = train(f"{folder}/{device}", device, mode, init_scale=2.0**10)
        figures = {name: [row[name] for row in metrics] for name in ("loss", "gradient_norm", "learning_rate")}
        kinds = sorted({str(p.dtype) for n, p in model.named_parameters() if "lora_" in n})
        found[device] = figures | {
            "evaluated": evaluate_loss(model, rows),
            "kinds": kinds,
            "skipped": metrics[-1].get("skipped_steps"),
        }
    return found


@pytest.mark.parametrize("mode", [slow("none"), "4bit", slow("8bit")])
def test_losses_are_those_of_fp32_on_a_cpu(card, tmp_path, mode):
    found = card.run(compare_with_cpu, str(tmp_path), mode, capability=TURING)
    fp16, fp32 = found["cuda"], found["cpu"]
    assert fp16["loss"] == pytest.approx(fp32["loss"], abs=0.002)
    assert fp16["evaluated"] == pytest.approx(fp32["evaluated"], abs=0.002)
    assert fp16["gradient_norm"] == pytest.approx(fp32["gradient_norm"], rel=0.05)
    assert fp16["learning_rate"] == fp32["learning_rate"]
    assert fp16["kinds"] == ["torch.float32"] and fp16["skipped"] == 0


def overflow_then_resume(folder, mode):
    """Train with a scale that is too large at first, and once more from the middle of that training."""
    import torch

    folder = Path(folder)
    model, rows = train(folder / "complete", mode=mode, init_scale=2.0**20, adapter={"dropout": 0.1})
    shutil.copytree(folder / "complete", folder / "resumed")
    resumed_after = next(row["step"] for row in rows if row["skipped_steps"] == 2)  # between two skipped steps
    for step in range(resumed_after + 1, 9):
        shutil.rmtree(folder / "resumed" / "checkpoints" / f"checkpoint-{step}")
    again, rows_again = train(folder / "resumed", mode=mode, init_scale=1.0, adapter={"dropout": 0.1}, resume=True)
    names = ("adapter_model.safetensors", "scaler.pt", "optimizer.pt", "scheduler.pt")
    last = [
        [(folder / run / "checkpoints/checkpoint-8" / n).read_bytes() for n in names] for run in ("complete", "resumed")
    ]
    weights = zip(model.named_parameters(), again.named_parameters(), strict=True)
    for row in (*rows, *rows_again):
        del row["seconds"]
    return {
        "rows": rows,
        "same_rows": rows == rows_again,
        "same_files": [left == right for left, right in zip(*last, strict=True)],
        "same_weights": all(torch.equal(p, q) for (name, p), (_, q) in weights if "lora_" in name),
        "scaler": torch.load(folder / "resumed/checkpoints/checkpoint-8/scaler.pt", weights_only=True),
    }


@pytest.mark.parametrize("mode", ["none", slow("4bit")])
def test_skips_overflow_and_resumes_to_the_same_bytes(card, tmp_path, mode):
    found = card.run(overflow_then_resume, str(tmp_path), mode, capability=TURING)
    rows = found["rows"]
    skipped = rows[-1]["skipped_steps"]
    assert 3 <= skipped < 8
    assert [row["skipped_steps"] for row in rows] == [min(row["step"], skipped) for row in rows]
    assert [row["gradient_norm"] is None for row in rows] == [row["step"] <= skipped for row in rows]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05
    assert (found["same_rows"], found["same_files"], found["same_weights"]) == (True, [True] * 4, True)
    # The dry run before the first step has not touched the scaler: its counter is the number of the other steps.
    assert found["scaler"]["scale"] == 2.0 ** (20 - skipped)
    assert found["scaler"]["_growth_tracker"] == 8 - skipped


def overflow_in_forward(folder):
    """Train a base whose states exceed 65,504: its products fit fp16, and their sum does not."""
    from safetensors.torch import load_file, save_file

    from lora_chat.config.recipe import BaseSection
    from lora_chat.models.base_model import find_base

    base = Path(folder) / "base"
    shutil.copytree(find_base(BaseSection(name="tiny-random")).folder, base)
    weights = load_file(base / "model.safetensors")
    for name, weight in weights.items():
        if "mlp" in name:
            weight *= 2000
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    try:
        train(Path(folder) / "run", base=str(base))
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    _, rows = train(Path(folder) / "fp32", base=str(base), dtype="float32")
    return {
        "message": message,
        "losses": [row["loss"] for row in rows],
        "started": (Path(folder) / "run/metrics.jsonl").read_text(),
    }


def test_refuses_a_base_that_overflows_before_training(card, tmp_path):
    found = card.run(overflow_in_forward, str(tmp_path), capability=TURING)
    assert found["message"].startswith("NonFiniteError: The base overflows in fp16")
    assert "--set quantization.dtype=float32" in found["message"]
    assert found["started"] == ""
    assert len(found["losses"]) == 8 and all(loss < 1e4 for loss in found["losses"])  # the named fix works


@pytest.fixture(scope="module")
def run(card, tmp_path_factory):
    """Train the smoke recipe in fp16 with the command, and return the folder of the run."""
    folder = tmp_path_factory.mktemp("runs")
    settings = (f"output.directory={folder}", "quantization.mode=4bit")
    words = ["sft", ROOT / "recipes/smoke.yaml", *(word for setting in settings for word in ("--set", setting))]
    done = card.command(words, cwd=ROOT, capability=TURING)
    assert done.exit_code == 0, done.stderr
    assert "4bit, float16, on cuda" in done.stderr
    return folder / "smoke-1"


@pytest.mark.skipif("LORA_CHAT_ALL_CUDA" not in os.environ, reason="on demand: make cuda-test")
def test_run_records_fp16(run):
    assert json.loads((run / "plan.json").read_text())["precision"]["dtype"] == "float16"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all("loss_scale" in row for row in metrics if "loss" in row)
    assert "float16" in (run / "adapter/README.md").read_text()
    assert all((folder / "scaler.pt").is_file() for folder in (run / "checkpoints").glob("checkpoint-*"))


def pick_losses(result):
    return {side: result["validation_loss"][side] for side in ("base", "adapted")}


@pytest.mark.skipif("LORA_CHAT_ALL_CUDA" not in os.environ, reason="on demand: make cuda-test")
def test_run_on_a_card_opens_there_and_on_a_cpu(card, run, tmp_path, capsys):
    from lora_chat.cli import main

    trained = pick_losses(json.loads((run / "comparison.json").read_text()))
    losses = {}
    for name, capability in (("turing", TURING), ("ampere", (8, 6))):
        done = card.command(["eval", run, "--json"], capability=capability)
        assert done.exit_code == 0, done.stderr
        losses[name] = pick_losses(json.loads(done.stdout))
    assert main(["eval", str(run), "--json"]) == 0
    losses["cpu"] = pick_losses(json.loads(capsys.readouterr().out))
    # The file has the values that were evaluated after training, so the figures are equal on the same kind of card.
    assert losses["turing"] == losses["ampere"] == trained
    assert losses["cpu"] == pytest.approx(trained, abs=0.002)
    chat = ["chat", str(run), "--max-new-tokens", "4"]
    done = card.command(chat, stdin="Hello\n", capability=TURING)
    assert done.exit_code == 0 and "(4bit, float16, on cuda)" in done.stderr, done.stderr
    assert main(["merge", str(run), "--to", str(tmp_path / "on-cpu")]) == 0
    assert "float32" in (tmp_path / "on-cpu/config.json").read_text()


@pytest.mark.skipif("LORA_CHAT_ALL_CUDA" not in os.environ, reason="on demand: make cuda-test")
@pytest.mark.slow
def test_merge_and_parcel_of_an_fp16_run(card, run, tmp_path, capsys):
    from lora_chat.cli import main

    done = card.command(["merge", run, "--to", tmp_path / "merged"], capability=TURING)
    assert done.exit_code == 0, done.stderr
    assert "float16" in (tmp_path / "merged/config.json").read_text()
    parcel = tmp_path / "smoke.lorachat"
    done = card.command(["pack", run, "--out", parcel], capability=TURING)
    assert done.exit_code == 0, done.stderr
    done = card.command(["verify", parcel, "--again"], capability=TURING)
    assert done.exit_code == 0, done.stderr
    assert main(["verify", str(parcel), "--again"]) == 0


@pytest.mark.slow
def test_fast_path_is_not_used_in_fp16(card, tmp_path):
    words = [
        "sft",
        ROOT / "recipes/smoke.yaml",
        "--set",
        "training.fast_path=true",
        "--set",
        f"output.directory={tmp_path}",
    ]
    done = card.command(words, cwd=ROOT, capability=TURING)
    assert done.exit_code == 0, done.stderr
    assert "The fast path does not run in fp16" in done.stderr


def train_with_small_scale(asked):
    """Train on the card and on the CPU with a scale at which no step is skipped, so that the losses can be compared."""
    from card_training import train_on_both

    set_initial_scale(2.0**8)
    return train_on_both(asked)


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "phi3", "gemma2"])
def test_architectures_train_in_fp16(card, architecture, recomputed):
    settings = {"gradient_checkpointing": recomputed}
    asked = {"base": f"random:{architecture}", "mode": "4bit", "fast": False, "settings": settings}
    on_card, on_cpu = card.run(train_with_small_scale, asked, capability=TURING)
    assert on_card["losses"] == pytest.approx(on_cpu["losses"], abs=0.002)
    assert not on_card["notes"]
