"""The device of a process is chosen before CUDA starts, and every reason against a card is said with its fix."""

import os

import pytest
import torch

from lora_chat.cli import main
from lora_chat.config.load import read_recipe
from lora_chat.errors import RecipeError, UnavailableError, UsageError
from lora_chat.system import device_choice
from lora_chat.system.environment import worker_environment
from lora_chat.system.hardware import detect_hardware
from lora_chat.system.nvidia_driver import read_nvidia_driver
from lora_chat.system.torch_build import TorchBuild, suggest_wheel
from lora_chat.system.visible_cards import find_visible_cards
from tests.nvidia_stub import (
    CUDA_12_BUILD,
    CUDA_13_BUILD,
    GTX_1080,
    RTX_3060,
    RTX_4090,
    RTX_5090,
    V100,
    Card,
    install_driver,
    install_torch,
    uuid_of,
)


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch):
    monkeypatch.setattr(device_choice, "_applied", None)
    for name in ("CUDA_VISIBLE_DEVICES", "LORA_CHAT_DEVICE", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that builds a machine with cards, a driver and a build of PyTorch."""

    def build(*cards, driver="580.65.06", cuda=13000, torch_build=CUDA_13_BUILD, works=True, started=False):
        install_driver(monkeypatch, *cards, version=driver, cuda=cuda)
        install_torch(monkeypatch, torch_build, works=works, cards=cards, started=started)

    return build


@pytest.fixture
def run(cache_home, capsys):
    """Return a function that runs a command in this process; it returns exit code and stderr."""

    def run(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.err

    return run


def test_a_machine_without_a_driver_uses_the_cpu_without_a_word(monkeypatch, messages):
    install_driver(monkeypatch, error=("LibraryNotFound", "NVML Shared Library Not Found"))
    assert detect_hardware("auto").device == "cpu"
    assert messages == []
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_installed_library_of_nvml_answers_as_the_stub_does():
    import pynvml

    report = read_nvidia_driver()
    assert report.driver or isinstance(report.problem, str)
    assert issubclass(pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError)
    assert issubclass(pynvml.NVMLError_DriverNotLoaded, pynvml.NVMLError)


def test_driver_and_cards_are_read(monkeypatch):
    install_driver(monkeypatch, RTX_3060, Card("Unified", (12, 1), 0), version="535.183.01", cuda=12020)
    driver = read_nvidia_driver().driver
    assert (driver.version, driver.cuda) == ("535.183.01", (12, 2))
    assert [(card.name, card.capability, card.total_bytes) for card in driver.cards] == [
        (RTX_3060.name, (8, 6), 12 * 2**30),
        ("Unified", (12, 1), 0),
    ]


def test_one_card_is_used_without_a_word(machine, messages):
    machine(RTX_3060)
    hardware = detect_hardware("auto")
    assert (hardware.device, hardware.index, hardware.capability) == ("cuda", 0, (8, 6))
    assert hardware.bfloat16
    assert messages == []
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_card_with_most_free_memory_is_the_only_visible_one(machine, messages):
    machine(Card("A", (8, 6), 12, free=2.0), Card("B", (8, 6), 12, free=11.2))
    assert detect_hardware("auto").name == "B"
    assert messages == ["Using cuda:1 (B), 11.2 of 12.0 GiB free; 2 cards are visible, and one process uses one."]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == uuid_of(1)
    assert torch.cuda.device_count() == 1
    assert detect_hardware("auto").name == "B", "a second question must not be answered from the narrowed list"
    assert len(messages) == 1


def test_the_recipe_chooses_a_card_by_its_number(machine, messages):
    machine(RTX_4090, RTX_3060)
    assert detect_hardware("cuda:1").name == RTX_3060.name
    assert detect_hardware("cuda:0").name == RTX_4090.name, "the first choice must not hide the other card"
    assert "Using cuda:1" in messages[0]


def test_workers_inherit_the_choice(machine, tmp_path):
    machine(Card("A", (8, 6), 12, free=2.0), Card("B", (8, 6), 12, free=11.2))
    detect_hardware("auto")
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    variables = worker_environment(tmp_path)
    assert variables["CUDA_VISIBLE_DEVICES"] == uuid_of(1)
    assert variables["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_wsl_shows_a_card_by_its_number(machine, monkeypatch):
    monkeypatch.setattr("lora_chat.system.visible_cards.is_wsl", lambda: True)
    machine(Card("A", (8, 6), 12, free=2.0), Card("B", (8, 6), 12, free=11.2))
    assert detect_hardware("auto").name == "B"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_number_beyond_the_cards_names_them(machine):
    machine(RTX_4090, RTX_3060)
    with pytest.raises(
        RecipeError, match=r"no cuda:2. Visible: cuda:0 \(NVIDIA GeForce RTX 4090\), cuda:1 \(.* 3060\)"
    ):
        detect_hardware("cuda:2")


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["B"]),
        ("1,0", ["B", "A"]),
        (uuid_of(1), ["B"]),
        ("GPU-00000001", ["B"]),
        ("0,7,1", ["A"]),
        ("1,1", []),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["A"]),
        ("MIG-1,MIG-2", [None, None]),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(monkeypatch, visible, names):
    install_driver(monkeypatch, Card("A", (8, 6), 12), Card("B", (8, 6), 12))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    found = find_visible_cards(read_nvidia_driver().driver.cards)
    assert [card.card.name if card.card else None for card in found] == names


def test_numbers_are_not_mapped_if_cuda_sorts_different_cards_by_speed(monkeypatch):
    install_driver(monkeypatch, RTX_3060, RTX_4090)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = find_visible_cards(read_nvidia_driver().driver.cards)
    assert [(card.entry, card.card) for card in found] == [("0", None), ("1", None)]


def test_a_visible_subset_is_respected(machine, monkeypatch):
    machine(Card("A", (8, 6), 12, free=9), Card("B", (8, 6), 12, free=11), Card("C", (8, 6), 12, free=8))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert detect_hardware("auto").name == "A"
    assert detect_hardware("cuda:1").name == "C"


def test_a_card_without_kernels_is_not_preferred(machine):
    machine(Card(GTX_1080.name, (6, 1), 8, free=7.9), Card(RTX_3060.name, (8, 6), 12, free=3))
    assert detect_hardware("auto").name == RTX_3060.name


def test_the_cpu_hides_the_cards_from_libraries(machine, messages):
    machine(RTX_3060)
    assert detect_hardware("cpu").device == "cpu"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
    assert not torch.cuda.is_available()
    assert messages == []
    assert detect_hardware("auto").device == "cuda", "the cards are visible again for another choice"


def test_the_environment_variable_replaces_auto_only(machine, monkeypatch):
    machine(RTX_3060)
    monkeypatch.setenv("LORA_CHAT_DEVICE", "cpu")
    assert detect_hardware().device == "cpu"
    assert detect_hardware("auto").device == "cpu"
    assert detect_hardware("cuda").device == "cuda"
    monkeypatch.setenv("LORA_CHAT_DEVICE", "gpu")
    with pytest.raises(UsageError, match="LORA_CHAT_DEVICE=gpu: not a device"):
        detect_hardware()


def test_hidden_cards_are_a_choice_of_the_user(machine, monkeypatch, messages):
    machine(RTX_3060)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_hardware("auto").device == "cpu"
    assert messages == ["Using the CPU: CUDA_VISIBLE_DEVICES hides every card."]
    with pytest.raises(RecipeError, match="hides every card"):
        detect_hardware("cuda")


def test_a_driver_without_a_card_uses_the_cpu(machine, messages):
    machine()
    assert detect_hardware("auto").device == "cpu"
    assert messages == ["Using the CPU: there is an NVIDIA driver (580.65.06) but no card."]


def test_a_library_without_a_driver_uses_the_cpu(monkeypatch, messages):
    install_driver(monkeypatch, error=("DriverNotLoaded", "Driver Not Loaded"))
    assert detect_hardware("auto").device == "cpu"
    assert messages == ["Using the CPU: there is no NVIDIA driver (Driver Not Loaded)."]


def test_a_driver_that_does_not_answer_stops_the_run(monkeypatch):
    install_driver(monkeypatch, error=("LibRmVersionMismatch", "RM has detected an NVML/RM version mismatch."))
    with pytest.raises(UnavailableError, match="version mismatch") as caught:
        detect_hardware("auto")
    assert "restart the machine" in str(caught.value)
    assert detect_hardware("cpu").device == "cpu"


def test_an_old_driver_stops_every_command_with_its_way_to_go_on(machine, run, tmp_path):
    machine(RTX_3060, driver="535.183.01", cuda=12020, works=False)
    output = f"output.directory={tmp_path / 'runs'}"
    for words, cpu in (
        (["sft", "recipes/smoke.yaml", "--set", output], "--set base.device=cpu"),
        (["plan", "recipes/smoke.yaml"], "--set base.device=cpu"),
        (["chat", "tiny-random"], "LORA_CHAT_DEVICE=cpu in the environment"),
    ):
        code, text = run(*words)
        assert code == 8, text
        assert "PyTorch 2.13.0 (CUDA 13.0) cannot use the NVIDIA GeForce RTX 3060: it needs driver 580 or newer" in text
        assert "the installed driver is 535.183.01 (CUDA 12.2)" in text
        assert '"torch==2.13.0+cu126" --index-url https://download.pytorch.org/whl/cu126' in text
        assert f"To use the CPU instead: {cpu}" in text
    assert not (tmp_path / "runs").exists()


def test_plans_for_another_card_and_data_need_no_working_driver(machine, run):
    machine(RTX_3060, driver="535.183.01", cuda=12020, works=False)
    assert run("plan", "recipes/smoke.yaml", "--gpu", "RTX 4090")[0] == 0
    assert run("data", "recipes/smoke.yaml")[0] == 0
    assert run("plan", "recipes/smoke.yaml", "--set", "base.device=cpu")[0] == 0


def test_a_plan_goes_on_with_the_environment_variable(machine, run, monkeypatch):
    machine(RTX_3060, driver="535.183.01", works=False)
    monkeypatch.setenv("LORA_CHAT_DEVICE", "cpu")
    code, text = run("plan", "recipes/smoke.yaml")
    assert code == 0, text


@pytest.mark.parametrize(
    ("card", "driver", "said", "unsaid"),
    [
        (RTX_3060, "470.10", "Fix: update the driver to 580 or newer\n", "another build"),
        (GTX_1080, "535.183.01", "Fix: install another build", "update the driver"),
        (Card("GeForce GT 710", (3, 5), 2), "470.256.02", "No build of PyTorch 2.10 or newer", "Fix"),
    ],
)
def test_only_fixes_that_help_are_advised(machine, monkeypatch, card, driver, said, unsaid):
    monkeypatch.setattr("lora_chat.system.torch_build._is_x86", lambda: True)
    machine(card, driver=driver, works=False)
    with pytest.raises(UnavailableError) as caught:
        detect_hardware("auto")
    assert said in str(caught.value)
    assert unsaid not in str(caught.value)


def test_a_cpu_build_beside_a_card_stops_the_run(machine):
    machine(RTX_3060, torch_build=None, works=False)
    with pytest.raises(UnavailableError, match="build for CPUs") as caught:
        detect_hardware("auto")
    assert '"torch==2.13.0+cu130"' in str(caught.value)


@pytest.mark.parametrize(("card", "capability"), [(GTX_1080, "6.1"), (V100, "7.0")])
def test_a_card_without_kernels_is_refused_with_the_build_that_has_them(machine, card, capability, monkeypatch):
    monkeypatch.setattr("lora_chat.system.torch_build._is_x86", lambda: True)
    machine(card)
    with pytest.raises(UnavailableError) as caught:
        detect_hardware("auto")
    text = str(caught.value)
    assert f"no kernels for the {card.name}, which has compute capability {capability}: the build has sm_75" in text
    assert '"torch==2.13.0+cu126"' in text
    assert "--set base.device=cpu" in text
    machine(card, torch_build=CUDA_12_BUILD)
    assert detect_hardware("auto").capability == card.capability


def test_a_card_without_kernels_is_refused_without_nvml_too(monkeypatch):
    install_driver(monkeypatch, error=("LibraryNotFound", "NVML Shared Library Not Found"))
    install_torch(monkeypatch, cards=[GTX_1080])
    with pytest.raises(UnavailableError, match=r"capability 6.1"):
        detect_hardware("auto")


def test_another_failure_of_cuda_is_not_blamed_on_the_driver_version(machine):
    machine(RTX_3060, works=False)
    with pytest.raises(
        UnavailableError, match=r"cannot start CUDA on the NVIDIA GeForce RTX 3060 with driver 580.65.06"
    ):
        detect_hardware("auto")


def test_a_context_that_fails_is_one_message(machine, monkeypatch):
    machine(RTX_3060)

    def busy(index=0):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore")

    monkeypatch.setattr(torch.cuda, "get_device_properties", busy)
    with pytest.raises(UnavailableError, match=r"busy or unavailable\.\nTo use the CPU"):
        detect_hardware("auto")


def test_started_cuda_keeps_its_first_card(machine, messages):
    machine(Card("A", (8, 6), 12, free=1), Card("B", (8, 6), 12, free=11), started=True)
    assert detect_hardware("auto").name == "A"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    with pytest.raises(RecipeError, match="CUDA has started"):
        detect_hardware("cuda:1")


def test_cards_without_nvml_are_chosen_by_their_number(monkeypatch):
    install_driver(monkeypatch, error=("LibraryNotFound", "NVML Shared Library Not Found"))
    install_torch(monkeypatch, cards=[RTX_4090, RTX_3060])
    assert detect_hardware("cuda:1").name == RTX_3060.name
    assert detect_hardware("auto").name == RTX_4090.name


def test_amd_cards_are_used_as_untested(monkeypatch, messages):
    install_torch(monkeypatch, None, cards=[Card("AMD Radeon RX 7900 XTX", (11, 0), 24)])
    monkeypatch.setattr(torch.version, "hip", "7.2")
    hardware = detect_hardware("auto")
    assert (hardware.device, hardware.capability) == ("cuda", None)
    assert messages == ["AMD cards (ROCm) are untested with lora_chat; training uses the stock path."]


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_gpus_are_left_unused_with_a_word(monkeypatch, messages, kind, run):
    install_driver(monkeypatch, error=("LibraryNotFound", "NVML Shared Library Not Found"))
    backend = torch.backends.mps if kind == "mps" else torch.xpu
    monkeypatch.setattr(backend, "is_available", lambda: True)
    assert detect_hardware("auto").device == "cpu"
    assert messages == [f"Using the CPU: the GPU of this machine ({kind}) is of a kind that was never tried."]
    code, text = run("plan", "recipes/smoke.yaml", "--set", f"base.device={kind}")
    assert code == 2
    assert f"lora_chat does not run on {kind} devices" in text


@pytest.mark.parametrize("value", ["gpu", "cuda:", "cuda:x", "cuda:1234", "CPU", "3"])
def test_recipes_name_a_device_that_exists(value):
    with pytest.raises(RecipeError, match=r"base\.device"):
        read_recipe("recipes/smoke.yaml", [f"base.device={value}"])


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_75", "sm_86"), (8, 9), True),
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),
        (("sm_80", "compute_80"), (9, 0), True),
        (("sm_120", "compute_120"), (12, 1), True),
        (("sm_90a",), (9, 0), True),
        (("sm_90a",), (9, 1), False),
        (("sm_60",), (6, 1), True),
        (("sm_75",), (6, 1), False),
        ((), (6, 1), True),
    ],
)
def test_kernels_run_on_the_cards_that_cuda_says(architectures, capability, runs):
    assert TorchBuild("2.13.0", (13, 0), None, architectures).has_kernels_for(capability) is runs


@pytest.mark.parametrize(
    ("version", "card", "installed", "wanted"),
    [
        ("580.65.06", RTX_3060, "2.13.0", '"torch==2.13.0+cu130"'),
        ("535.183.01", RTX_3060, "2.13.0", '"torch==2.13.0+cu126"'),
        ("535.183.01", RTX_3060, "2.15.0", '--force-reinstall "torch>=2.10,<2.15"'),
        ("570.10", RTX_5090, "2.13.0", '--force-reinstall "torch>=2.10,<2.12"'),
        ("580.65.06", GTX_1080, "2.13.0", '"torch==2.13.0+cu126"'),
        ("470.10", RTX_3060, "2.13.0", None),
        ("570.10", RTX_5090, "2.11.0", '"torch==2.11.0+cu128"'),
    ],
)
def test_suggested_builds_run_on_driver_and_card(monkeypatch, version, card, installed, wanted):
    monkeypatch.setattr("lora_chat.system.torch_build._is_x86", lambda: True)
    install_driver(monkeypatch, card, version=version)
    build = TorchBuild(installed, (13, 0), None, ())
    command = suggest_wheel(read_nvidia_driver().driver, card.capability, build)
    assert (wanted in command) if wanted else command is None


def test_no_wheels_for_arm_are_suggested_for_old_cards(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    install_driver(monkeypatch, V100)
    assert suggest_wheel(read_nvidia_driver().driver, (7, 0), TorchBuild("2.13.0", (13, 0), None, ())) is None


@pytest.fixture
def share(monkeypatch):
    """Return a function that makes this process one of several."""
    monkeypatch.setattr(device_choice, "_sharing", device_choice._Sharing())
    return device_choice.share_cards


@pytest.mark.parametrize(("index", "card"), [(0, 1), (1, 2)])
def test_each_process_has_its_own_suitable_card(machine, share, index, card):
    machine(GTX_1080, RTX_3060, Card("NVIDIA GeForce RTX 3060", (8, 6), 12, free=1))
    share(index, 2)
    assert detect_hardware("auto").device == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == uuid_of(card)
    assert device_choice.chosen_card_name() == uuid_of(card)


def test_more_processes_than_cards_are_refused(machine, share):
    machine(RTX_3060, GTX_1080)
    share(0, 2)
    with pytest.raises(RecipeError, match=r"2 processes, 1 card: .*Fix: --processes 1 .*base\.device=cpu"):
        detect_hardware("auto")
    share(1, 2)
    with pytest.raises(RecipeError, match="2 processes, 1 card"):
        detect_hardware("cuda")


def test_one_card_by_its_number_is_not_for_several_processes(machine, share):
    machine(RTX_3060, RTX_4090)
    share(1, 2)
    with pytest.raises(RecipeError, match=r"base\.device=cuda:1 is one card, and 2 processes train"):
        detect_hardware("cuda:1")


def test_a_scheduler_may_show_each_process_one_card(machine, share, monkeypatch):
    machine(RTX_3060, RTX_3060)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    share(1, 2, may_see_own_card=True)
    detect_hardware("auto")
    assert device_choice.chosen_card_name() == uuid_of(1)


def test_all_processes_use_the_cpu(machine, share):
    machine(RTX_3060)
    share(1, 2)
    assert detect_hardware("cpu").device == "cpu"
    assert device_choice.chosen_card_name() == ""
