"""`lora-chat doctor` says what `sft` will do on a machine, and why not more."""

import importlib
import json
import subprocess
import sys

import pytest
import torch

from lora_chat.cli import main
from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.models.quantization import self_test
from lora_chat.models.quantization.self_test import try_quantization
from lora_chat.system import device_choice, operating_system
from lora_chat.system.hardware import Hardware
from lora_chat.training.fast_path import self_test as fast_path_self_test
from lora_chat.training.fast_path.self_test import try_packed_attention
from tests.nvidia_stub import (
    GTX_1080,
    RTX_3060,
    RTX_4060,
    RTX_4090,
    T4,
    Card,
    install_driver,
    install_torch,
)

NAMES = [
    *("System", "Libraries", "Driver", "PyTorch", "Cards", "Device", "bitsandbytes", "Fast path", "fp32 products"),
    *("Compiler", "Processes", "Memory", "Disk", "Base", "Hub", "Extras", "Settings"),
]


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch, cache_home):
    monkeypatch.setattr(device_choice, "_applied", None)
    for name in ("CUDA_VISIBLE_DEVICES", "LORA_CHAT_DEVICE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def doctor(capsys):
    """Return a function that runs the command; it returns exit code, the report, and stderr."""

    def run():
        code = main(["doctor", "--json"])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        report = json.loads(captured.out)
        assert report["exit_code"] == code
        report["text"] = {check["name"]: check["text"] for check in report["checks"]}
        report["state"] = {check["name"]: check["state"] for check in report["checks"]}
        return code, report, captured.err

    return run


@pytest.fixture
def machine(monkeypatch):
    """Return a function that puts cards into the machine on which the tried kernels work."""

    def build(*cards, driver="580.65.06", cuda=13000, works=True, **options):
        install_driver(monkeypatch, *cards, version=driver, cuda=cuda)
        install_torch(monkeypatch, works=works, cards=cards, **options)
        monkeypatch.setattr(self_test, "try_quantization", lambda mode, device: "")
        monkeypatch.setattr(fast_path_self_test, "try_packed_attention", lambda device, dtype: "")

    return build


def test_reports_every_check_and_a_verdict_on_this_machine(monkeypatch, doctor, capsys):
    install_driver(monkeypatch, error=("LibraryNotFound", "NVML Shared Library Not Found"))
    code, report, text = doctor()
    assert (code, text) == (0, "")
    assert list(report["text"]) == NAMES
    assert report["device"]["kind"] == "cpu"
    assert "4bit works, 8bit works" in report["text"]["bitsandbytes"]
    assert report["text"]["Fast path"].startswith("on, and its attention works here")
    assert report["verdict"].startswith("sft will use the CPU (")
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == report["verdict"]
    assert len(lines) == len(NAMES) + 1


@pytest.mark.parametrize(
    ("card", "dtype", "fast"),
    [
        (RTX_3060, "bf16", True),
        (RTX_4060, "bf16", True),
        (RTX_4090, "bf16", True),
        (T4, "fp16 with a gradient scaler", False),
    ],
)
def test_says_what_a_card_will_do(machine, doctor, card, dtype, fast):
    machine(card)
    code, report, text = doctor()
    assert code == 0, text
    major, minor = card.capability
    hardware = Hardware("cuda", card.name, int(card.gib * 2**30), fast, 1, 0, card.capability)
    plan = make_plan(Recipe.model_validate({"data": {"train": "x"}}), hardware)
    path = "fast path" if plan.training.fast_path else "stock path"
    assert report["verdict"] == f"sft will use {card.name}: 4-bit, {dtype}, {path}."
    assert report["device"]["fast_path"] is plan.training.fast_path
    assert f"cuda:0 {card.name}: capability {major}.{minor}, kernels in this build, " in report["text"]["Cards"]
    assert ("no bf16" in report["text"]["Cards"]) is not fast
    assert ("compute capability 8.0" in report["text"]["Fast path"]) is not fast
    assert report["text"]["Device"] == f"{card.name}, because it is the only visible card"
    assert report["text"]["Driver"] == "NVIDIA 580.65.06, for CUDA up to 13.0; PyTorch needs 580 or newer"


def test_says_that_a_1080_needs_another_build(machine, doctor):
    machine(GTX_1080)
    code, report, text = doctor()
    assert code == 8
    assert report["verdict"] == "sft cannot run on this machine as it is."
    assert report["device"] is None
    assert "capability 6.1, no kernels in this build" in report["text"]["Cards"]
    assert (report["state"]["Cards"], report["state"]["Device"]) == ("note", "problem")
    assert "has no kernels for the NVIDIA GeForce GTX 1080" in report["text"]["Device"]
    assert "LORA_CHAT_DEVICE=cpu in the environment" in text


def test_says_that_a_driver_is_too_old(machine, doctor):
    machine(RTX_3060, driver="535.183.01", cuda=12020, works=False)
    code, report, text = doctor()
    assert code == 8
    assert report["text"]["Driver"] == "NVIDIA 535.183.01, for CUDA up to 12.2; PyTorch needs 580 or newer"
    assert report["state"]["Driver"] == "problem"
    assert "needs driver 580 or newer" in report["text"]["Device"]
    assert "whl/cu126" in text
    assert report["text"]["bitsandbytes"] == "not tried, because there is no device"


def test_says_which_of_several_cards_is_used(machine, doctor):
    machine(Card("A", (8, 6), 12, free=2), Card("B", (8, 9), 12, free=11))
    code, report, _ = doctor()
    assert code == 0
    assert report["text"]["Device"] == "B, because it has the most free memory of 2 visible cards"
    assert [line.split(":")[1].split()[1] for line in report["text"]["Cards"].splitlines()] == ["A", "B"]


@pytest.mark.parametrize(
    ("cards", "nccl", "state", "text"),
    [
        ((RTX_3060,), True, "ok", "1, because each process needs its own card"),
        ((RTX_3060, RTX_3060), True, "ok", "up to 2: lora-chat sft RECIPE --processes 2 uses one card for each"),
        ((RTX_3060, RTX_3060, GTX_1080), True, "ok", "up to 2: "),  # this build has no kernels for the last one
        ((RTX_3060, RTX_4090), True, "note", "every step waits for the slowest"),
        ((RTX_3060, RTX_3060), False, "note", "has no NCCL"),
    ],
)
def test_says_how_many_processes_the_cards_are_enough_for(machine, doctor, monkeypatch, cards, nccl, state, text):
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: nccl)
    machine(*cards)
    _, report, _ = doctor()
    assert report["state"]["Processes"] == state
    assert text in report["text"]["Processes"]


@pytest.mark.parametrize(
    ("variables", "code", "text"),
    [
        ({}, 0, "one uses the CPU's "),
        ({"WORLD_SIZE": "1"}, 0, "one uses the CPU's "),
        ({"WORLD_SIZE": "2"}, 2, "RANK is not set"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, 2, "WORLD_SIZE=two is not a number"),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "2950"},
            0,
            "the environment makes sft process 2 of 2, which waits for the others",
        ),
    ],
)
def test_says_what_the_variables_of_processes_mean(monkeypatch, doctor, variables, code, text):
    monkeypatch.setenv("LORA_CHAT_DEVICE", "cpu")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    exit_code, report, _ = doctor()
    assert exit_code == code
    assert text in report["text"]["Processes"]
    assert all(f"{name}={value}" in report["text"]["Settings"] for name, value in variables.items())


def test_hidden_cards_are_listed(machine, doctor, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    machine(RTX_3060, RTX_3060)
    _, report, _ = doctor()
    assert [line.split()[0] for line in report["text"]["Cards"].splitlines()] == ["hidden", "cuda:0"]
    assert "CUDA_VISIBLE_DEVICES=1" in report["text"]["Settings"]


def test_the_cpu_can_be_chosen_beside_an_unusable_card(machine, doctor, monkeypatch):
    monkeypatch.setenv("LORA_CHAT_DEVICE", "cpu")
    machine(GTX_1080)
    code, report, _ = doctor()
    assert (code, report["device"]["kind"]) == (0, "cpu")


def test_quantization_that_fails_stops_and_names_the_other_modes(machine, doctor, monkeypatch):
    machine(RTX_3060)
    monkeypatch.setattr(self_test, "try_quantization", lambda mode, device: "no kernel image")
    code, report, text = doctor()
    assert code == 8
    assert "4bit fails (no kernel image)" in report["text"]["bitsandbytes"]
    assert "Fix: --set quantization.mode=none" in text


def test_8bit_that_fails_is_a_note(machine, doctor, monkeypatch):
    machine(RTX_3060)
    monkeypatch.setattr(self_test, "try_quantization", lambda mode, device: "no" if mode == "8bit" else "")
    code, report, _ = doctor()
    assert (code, report["state"]["bitsandbytes"]) == (0, "note")


def test_attention_that_fails_means_the_stock_path(machine, doctor, monkeypatch):
    machine(RTX_3060)
    monkeypatch.setattr(fast_path_self_test, "try_packed_attention", lambda device, dtype: "no kernel")
    _, report, _ = doctor()
    assert "its attention fails here (no kernel), so the stock path is used" in report["text"]["Fast path"]
    assert report["verdict"].endswith("stock path.")


def test_wsl_is_explained(monkeypatch, tmp_path, doctor):
    (tmp_path / "version").write_text("Linux version 5.15.90.1-microsoft-standard-WSL2")
    monkeypatch.setattr(operating_system, "_PROC_VERSION", tmp_path / "version")
    _, report, _ = doctor()
    assert "spills into main memory" in report["text"]["System"]


def test_offline_settings_are_shown_and_no_password(monkeypatch, doctor):
    monkeypatch.setenv("HF_ENDPOINT", "https://user:secret@mirror.example/hub")
    _, report, _ = doctor()
    assert "mirror.example" in report["text"]["Hub"]
    assert "secret" not in json.dumps(report)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline (HF_HUB_OFFLINE)" in doctor()[1]["text"]["Hub"]


def test_a_missing_pytorch_is_one_line(cache_home):
    code = "import sys; sys.modules['torch'] = None; from lora_chat.cli import main; raise SystemExit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 8, done.stderr
    assert "PyTorch cannot be imported" in done.stdout
    assert "Fix: install it again" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_library_is_named(monkeypatch, doctor):
    module = importlib.import_module("lora_chat.pipeline.doctor_machine")
    real = module.read_installed_version
    monkeypatch.setattr(module, "read_installed_version", lambda name: None if name == "trl" else real(name))
    code, report, _ = doctor()
    assert (code, report["text"]["Libraries"]) == (8, "missing: trl")


def test_the_tries_find_wrong_results(monkeypatch):
    assert try_quantization("4bit", "cpu") == try_quantization("8bit", "cpu") == ""
    monkeypatch.setattr(self_test, "_round_trip_4bit", lambda weights: weights * 0.7)
    assert try_quantization("4bit", "cpu") == "values are off by 30%"
    assert try_quantization("4bit", "cuda") != ""
    assert try_packed_attention("cpu", torch.float32) == ""
    assert try_packed_attention("cuda", torch.float32) != ""
