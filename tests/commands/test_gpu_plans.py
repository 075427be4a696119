"""What `plan` says about well-known GPUs: dtype, path, fit, kernels, and the device of a later merge's check."""

import json

import pytest

from lora_chat.cli import main
from lora_chat.planning import gpu_kernels

pytestmark = pytest.mark.slow

AMPERE = {"dtype": "bfloat16", "fast_path": True}
TURING = {"dtype": "float16", "fast_path": False}
PLANS = [
    # GPU, recipe, dtype and path, verdict, exit code of `sft` with PyPI's PyTorch, device of the parity check
    ("RTX 3060 12GB", "quickstart", AMPERE, "fits", 0, "cuda"),
    ("RTX 3060 12GB", "gpu-8gb-4bit", AMPERE, "fits", 0, "cuda"),
    ("RTX 3060 12GB", "gpu-12gb-4bit", AMPERE, "fits", 0, "cpu"),
    ("RTX 4060", "gpu-8gb-4bit", AMPERE, "fits", 0, "cuda"),
    ("RTX 4060", "gpu-16gb-4bit", AMPERE, "tight", 0, "cpu"),
    ("RTX 4090", "gpu-16gb-4bit", AMPERE, "fits", 0, "cuda"),
    ("RTX 4090", "gpu-24gb-none", AMPERE, "fits", 0, "cuda"),
    ("T4", "gpu-8gb-4bit", TURING, "fits", 0, "cuda"),
    ("T4", "gpu-16gb-4bit", TURING, "fits", 0, "cpu"),
    ("GTX 1080", "gpu-8gb-4bit", TURING, "fits", 8, "cuda"),
]


@pytest.fixture
def run(cache_home, capsys, monkeypatch):
    """Return a function that runs `plan` for a recipe of this repository."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(gpu_kernels, "read_installed_version", lambda _: "2.13.0")

    def run(recipe, *words):
        capsys.readouterr()
        code = main(["plan", f"recipes/{recipe}.yaml", *words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("gpu", "recipe", "chosen", "verdict", "exit_code", "merge_device"), PLANS, ids=[f"{p[0]} {p[1]}" for p in PLANS]
)
def test_plan_of_a_well_known_gpu(run, gpu, recipe, chosen, verdict, exit_code, merge_device):
    code, out, _ = run(recipe, "--gpu", gpu, "--json")
    estimate = json.loads(out)
    assert code == 0
    assert chosen.items() <= estimate["chosen"].items()
    assert estimate["verdict"] == verdict
    assert (estimate["refusal"] or {"exit_code": 0})["exit_code"] == exit_code
    assert estimate["merge_check"]["device"] == merge_device
    assert estimate["total_seconds"]["low"] > 0


def test_text_names_dtype_kernels_and_merge(run):
    _, out, _ = run("gpu-8gb-4bit", "--gpu", "GTX 1080")
    assert "fp16 with a gradient scaler" in out
    assert "no kernels for compute capability 6.1, so `sft` would stop with exit code 8" in out
    assert 'Fix: pip install "torch==2.13.0+cu126"' in out
    assert "Later     merging takes " in out


@pytest.mark.parametrize("gpu", ["RTX 4060 Ti", "A100", "RX 7900 XTX", "Apple M2"])
def test_gpu_without_a_plan_gets_one_message(run, gpu):
    code, out, err = run("gpu-8gb-4bit", "--gpu", gpu)
    assert (code, out) == (2, "")
    assert f"--gpu {gpu}: " in err
    assert "Fix: " in err
