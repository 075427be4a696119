"""A plan says whether PyPI's build of PyTorch has kernels for a GPU, and which build has."""

from dataclasses import replace

import pytest

from lora_chat.errors import UnavailableError
from lora_chat.planning import gpu_kernels
from lora_chat.planning.gpu_kernels import find_kernel_refusal
from lora_chat.planning.gpu_specs import find_gpu_spec, load_gpu_specs, target_from_gpu_spec, target_from_memory_size


@pytest.fixture(autouse=True)
def torch_version(monkeypatch):
    """Set the version of PyTorch that seems to be installed."""

    def set_version(version):
        monkeypatch.setattr(gpu_kernels, "read_installed_version", lambda _: version)

    set_version("2.13.0+cpu")
    return set_version


def target_of(name):
    return target_from_gpu_spec(find_gpu_spec(name))


def test_every_gpu_since_turing_has_kernels():
    refused = {spec.name for spec in load_gpu_specs() if find_kernel_refusal(target_from_gpu_spec(spec))}
    assert refused == {spec.name for spec in load_gpu_specs() if spec.capability < (7, 5)}
    assert {"GeForce GTX 1080", "Tesla P100 16GB", "Tesla V100 32GB", "Titan V"} <= refused


@pytest.mark.parametrize(("name", "capability"), [("GTX 1080", "6.1"), ("V100 32GB", "7.0"), ("P100 16GB", "6.0")])
@pytest.mark.parametrize("version", ["2.10.0", "2.11.0", "2.13.0"])
def test_older_gpu_gets_the_build_with_its_kernels(torch_version, name, capability, version):
    torch_version(version)
    refusal = find_kernel_refusal(target_of(name))
    assert refusal.exit_code == UnavailableError.exit_code == 8
    assert f"no kernels for compute capability {capability}" in refusal.reason
    assert refusal.fix == f'pip install "torch=={version}+cu126" --index-url https://download.pytorch.org/whl/cu126'


def test_no_build_of_a_later_version_has_the_kernels(torch_version):
    torch_version("2.15.0")
    assert "base.device=cpu" in find_kernel_refusal(target_of("GTX 1080")).fix


def test_gpu_of_this_machine_or_of_unknown_kind_is_not_judged():
    assert find_kernel_refusal(replace(target_of("GTX 1080"), at_hand=True)) is None
    assert find_kernel_refusal(replace(target_of("GTX 1080"), device="cpu")) is None
    assert find_kernel_refusal(target_from_memory_size(12 * 2**30)) is None
