"""GPUs are found by their usual and their driver's names, and their figures have sources."""

import pytest

from lora_chat.errors import UsageError
from lora_chat.planning.gpu_specs import find_gpu_spec, load_gpu_specs, target_from_gpu_spec

GIB = 2**30
NAMES = {
    "RTX 4090": "GeForce RTX 4090",
    "4090": "GeForce RTX 4090",
    "rtx4090": "GeForce RTX 4090",
    "NVIDIA GeForce RTX 4090": "GeForce RTX 4090",
    "RTX 4090 24GB": "GeForce RTX 4090",
    "4090 D": "GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4090 Laptop GPU": "GeForce RTX 4090 Laptop",
    "RTX 4080": "GeForce RTX 4080",
    "4080 super": "GeForce RTX 4080 Super",
    "RTX 4080 mobile": "GeForce RTX 4080 Laptop",
    "NVIDIA GeForce RTX 4070 Laptop GPU": "GeForce RTX 4070 Laptop",
    "4070tisuper": "GeForce RTX 4070 Ti Super",
    "NVIDIA GeForce RTX 4070 Ti SUPER": "GeForce RTX 4070 Ti Super",
    "4060 ti 16gb": "GeForce RTX 4060 Ti 16GB",
    "RTX 4060 Ti (8 GB)": "GeForce RTX 4060 Ti 8GB",
    "4060ti 16g": "GeForce RTX 4060 Ti 16GB",
    "RTX 4060": "GeForce RTX 4060",
    "RTX 3060 12 GB": "GeForce RTX 3060 12GB",
    "3060 ti": "GeForce RTX 3060 Ti",
    "NVIDIA GeForce RTX 3060 Laptop GPU": "GeForce RTX 3060 Laptop",
    "RTX 3080 10GB": "GeForce RTX 3080 10GB",
    "NVIDIA GeForce RTX 2070 with Max-Q Design": "GeForce RTX 2070 Laptop",
    "NVIDIA GeForce GTX 1080": "GeForce GTX 1080",
    "gtx 1080 ti": "GeForce GTX 1080 Ti",
    "NVIDIA GeForce GTX 1060 6GB": "GeForce GTX 1060 6GB",
    "Tesla T4": "Tesla T4",
    "T4": "Tesla T4",
    "NVIDIA L4": "L4",
    "NVIDIA A10G": "A10G",
    "A10": "A10",
    "NVIDIA A100-SXM4-40GB": "A100 40GB",
    "NVIDIA A100-PCIE-40GB": "A100 40GB",
    "NVIDIA A100-SXM4-80GB": "A100 SXM4 80GB",
    "NVIDIA A100 80GB PCIe": "A100 PCIe 80GB",
    "NVIDIA H100 80GB HBM3": "H100 SXM5 80GB HBM3",
    "NVIDIA H100 PCIe": "H100 PCIe 80GB",
    "NVIDIA H100 NVL": "H100 NVL 94GB",
    "NVIDIA H200": "H200 SXM",
    "Tesla V100-SXM2-32GB": "Tesla V100 32GB",
    "Tesla P100-PCIE-16GB": "Tesla P100 16GB",
    "NVIDIA TITAN RTX": "Titan RTX",
    "TITAN V": "Titan V",
    "NVIDIA RTX A6000": "RTX A6000",
    "Quadro RTX 6000": "Quadro RTX 6000",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada Generation",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000 Blackwell",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTX PRO 6000 Max-Q Blackwell",
}
AMBIGUOUS = {
    "RTX 4060 Ti": ("GeForce RTX 4060 Ti 8GB", "GeForce RTX 4060 Ti 16GB"),
    "NVIDIA GeForce RTX 4060 Ti": ("GeForce RTX 4060 Ti 8GB", "GeForce RTX 4060 Ti 16GB"),
    "5060 ti": ("GeForce RTX 5060 Ti 8GB", "GeForce RTX 5060 Ti 16GB"),
    "RTX 3060": ("GeForce RTX 3060 12GB", "GeForce RTX 3060 8GB"),
    "RTX 3080": ("GeForce RTX 3080 10GB", "GeForce RTX 3080 12GB"),
    "RTX 3080 Laptop": ("GeForce RTX 3080 Laptop 8GB", "GeForce RTX 3080 Laptop 16GB"),
    "A100": ("A100 40GB", "A100 PCIe 80GB", "A100 SXM4 80GB"),
    "H100": ("H100 SXM5 80GB HBM3", "H100 PCIe 80GB", "H100 NVL 94GB"),
    "V100": ("Tesla V100 16GB", "Tesla V100 32GB"),
}


@pytest.mark.parametrize(("text", "name"), NAMES.items())
def test_finds_gpu_by_usual_and_driver_names(text, name):
    assert find_gpu_spec(text).name == name


@pytest.mark.parametrize("name", [spec.name for spec in load_gpu_specs()])
def test_finds_every_gpu_by_its_own_name(name):
    assert find_gpu_spec(name).name == name
    assert find_gpu_spec(f"NVIDIA {name}".upper()).name == name


@pytest.mark.parametrize(("text", "names"), AMBIGUOUS.items())
def test_ambiguous_name_lists_its_gpus_as_commands(text, names):
    with pytest.raises(UsageError) as error:
        find_gpu_spec(text)
    commands = str(error.value).splitlines()[1:]
    assert commands == [f'  lora-chat plan RECIPE --gpu "{name}"' for name in names]


def test_a_part_of_many_names_lists_only_a_few():
    with pytest.raises(UsageError) as error:
        find_gpu_spec("RTX")
    assert str(error.value).count("--gpu") == 9
    assert str(error.value).endswith("...")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        *((name, "ROCm") for name in ("RX 7900 XTX", "7900XT", "AMD Radeon RX 6800", "9070", "MI300X", "MI210")),
        *((name, "Intel GPUs are not used") for name in ("Arc A770", "B580", "Intel Data Center GPU Max 1550")),
        *((name, "Apple GPUs are not used") for name in ("M1", "Apple M2 Max", "m4 pro", "M3 Ultra")),
    ],
)
def test_gpu_of_another_vendor_gets_one_answer(text, answer):
    with pytest.raises(UsageError, match=answer) as error:
        find_gpu_spec(text)
    assert "Fix: " in str(error.value)


@pytest.mark.parametrize("text", ["RTX 4091", "RTX 4090 48GB", "Voodoo 2", "M40", "GTX 4090", ""])
def test_unknown_gpu_names_similar_ones(text):
    with pytest.raises(UsageError, match=r"unknown GPU. Similar names: .+\nFix: .*--memory"):
        find_gpu_spec(text)


def test_every_gpu_has_plausible_figures_and_a_source():
    specs = load_gpu_specs()
    assert len({spec.name for spec in specs}) == len(specs)
    for spec in specs:
        assert spec.source
        assert 3 * GIB <= spec.memory < 200 * GIB
        assert 1e12 < spec.flops < 1e16
        assert 5e10 < spec.bandwidth < 1e13
        assert spec.bfloat16 == (spec.capability >= (8, 0))


def test_target_has_memory_and_capability_of_the_gpu():
    target = target_from_gpu_spec(find_gpu_spec("T4"))
    assert target.memory > 14 * GIB
    assert (target.capability, target.bfloat16) == ((7, 5), False)
    assert target_from_gpu_spec(find_gpu_spec("RTX 4090")).bfloat16
