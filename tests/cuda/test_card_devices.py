"""The choice of a device on emulated cards: one of several cards, and cards that PyTorch cannot use."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
GIB = 2**30


def record_devices(start_cuda=False):
    """Record what the training sees; with `start_cuda`, start CUDA before the command."""
    import os

    import torch

    import lora_chat.training.sft as module

    if start_cuda:
        torch.cuda.init()
    seen, make = {}, module._make_trainer

    def recorded(run, prepared):
        trainer = make(run, prepared)
        seen.update(
            n_gpu=trainer.args.n_gpu,
            wrapped=type(trainer.model_wrapped).__name__ == "DataParallel",
            device=str(run.model.device),
            visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
            cards=torch.cuda.device_count(),
        )
        return trainer

    module._make_trainer = recorded
    return lambda: seen


def run_sft(card, folder, *settings, arguments=(), **options):
    words = ["sft", ROOT / "recipes/smoke.yaml", "--set", f"output.directory={folder / 'runs'}"]
    words += [
        word for setting in ("training.max_steps=1", "evaluation.samples=0", *settings) for word in ("--set", setting)
    ]
    return card.command(words, prepare=record_devices, arguments=arguments, cwd=folder, nvml={}, **options)


def test_sft_uses_the_card_with_most_free_memory(card, tmp_path):
    done = run_sft(card, tmp_path, cards=2, name=["Busy", "Free"], used_by_others=[8 * GIB, GIB])
    assert done.exit_code == 0, done.stderr
    assert "Using cuda:1 (Free), 11.0 of 12.0 GiB free; 2 cards are visible" in done.stderr
    assert done.stderr.count("cards are visible") == 1
    assert done.result == {
        "n_gpu": 1,
        "wrapped": False,
        "device": "cuda:0",
        "visible": "GPU-00000001-0000-0000-0000-000000000000",
        "cards": 1,
    }


def test_a_program_that_has_started_cuda_trains_on_its_first_card(card, tmp_path):
    done = run_sft(card, tmp_path, cards=2, used_by_others=[8 * GIB, GIB], arguments=(True,))
    assert done.exit_code == 0, done.stderr
    assert (done.result["n_gpu"], done.result["wrapped"], done.result["device"]) == (1, False, "cuda:0")
    assert done.result["cards"] == 2
    assert done.peaks[1] == 0


def test_the_cpu_is_a_choice_beside_a_card(card, tmp_path):
    done = run_sft(card, tmp_path, "base.device=cpu")
    assert done.exit_code == 0, done.stderr
    assert (done.result["n_gpu"], done.result["device"], done.result["cards"]) == (0, "cpu", 0)


def test_an_old_driver_is_refused_before_a_run_is_made(card, tmp_path):
    done = run_sft(card, tmp_path, driver="535.183.01", driver_cuda=(12, 2))
    assert done.exit_code == 8
    assert "needs driver 580 or newer, and the installed driver is 535.183.01 (CUDA 12.2)" in done.stderr
    assert "--set base.device=cpu" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_card_without_kernels_is_refused_before_a_run_is_made(card, tmp_path):
    done = run_sft(card, tmp_path, name="NVIDIA GeForce GTX 1080", capability=(6, 1))
    assert done.exit_code == 8
    assert "no kernels for the NVIDIA GeForce GTX 1080, which has compute capability 6.1" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_doctor_tries_the_libraries_on_the_card(card, tmp_path):
    done = card.command(["doctor"], cwd=tmp_path, nvml={}, name="NVIDIA GeForce RTX 3060")
    assert done.exit_code == 0, done.stderr
    assert "cuda:0 NVIDIA GeForce RTX 3060: capability 8.6, kernels in this build, bf16" in done.stdout
    assert "4bit works, 8bit works" in done.stdout
    assert "its attention works here; varlen kernel with enable_gqa" in done.stdout
    assert "sft will use NVIDIA GeForce RTX 3060: 4-bit, bf16, fast path." in done.stdout


def test_doctor_knows_a_card_without_bf16(card, tmp_path):
    done = card.command(["doctor"], cwd=tmp_path, nvml={}, name="Tesla T4", capability=(7, 5))
    assert done.exit_code == 0, done.stderr
    assert "4bit works, 8bit works" in done.stdout
    assert "sft will use Tesla T4: 4-bit, fp16 with a gradient scaler, stock path." in done.stdout
