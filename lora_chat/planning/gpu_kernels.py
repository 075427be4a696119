"""Whether PyPI's build of PyTorch has kernels for a GPU that is not at hand, and which build has."""

from dataclasses import dataclass

from lora_chat.errors import UnavailableError
from lora_chat.planning.device import TargetDevice
from lora_chat.system.torch_build import WHEEL_INDEXES, TorchBuild, WheelIndex, parse_version, read_installed_version

_PYPI_INDEXES = (("2.11", "cu130"), ("2.10", "cu128"))
"""First version of PyTorch and the index with the same builds as PyPI.

Source: the requirements of the wheels on PyPI, which are nvidia-cuda-runtime-cu12 12.8 for 2.10.0 and cuda-toolkit 13.0
for 2.11.0 and 2.12.0."""


@dataclass(frozen=True)
class Refusal:
    """The reason why `sft` stops on a GPU before it loads anything."""

    reason: str
    fix: str
    exit_code: int


def find_kernel_refusal(target: TargetDevice) -> Refusal | None:
    """Return why PyPI's build of PyTorch cannot run on a GPU, or None if it can.

    A GPU at hand was checked with the installed build already (system/hardware.py).
    """
    if target.device != "cuda" or target.at_hand or target.capability is None:
        return None
    version = (read_installed_version("torch") or _PYPI_INDEXES[0][0]).split("+")[0]
    if _has_kernels(_find_pypi_index(version), target.capability):
        return None
    other = next((index for index in WHEEL_INDEXES if _has_kernels(index, target.capability)), None)
    capability = "{}.{}".format(*target.capability)
    return Refusal(
        f"PyPI's build of PyTorch {version} has no kernels for compute capability {capability}",
        f'pip install "torch=={version}+{other.name}" --index-url {other.url}'
        if other and other.has_version(version)
        else "no build of a newer PyTorch has them; use the CPU (--set base.device=cpu)",
        UnavailableError.exit_code,
    )


def _find_pypi_index(version: str) -> WheelIndex:
    """Return the index that has the same builds of a version of PyTorch as PyPI."""
    name = next((name for first, name in _PYPI_INDEXES if parse_version(version) >= parse_version(first)), "cu128")
    return next(index for index in WHEEL_INDEXES if index.name == name)


def _has_kernels(index: WheelIndex, capability: tuple[int, int]) -> bool:
    """Return whether the builds of an index have kernels for a compute capability."""
    architectures = tuple(f"sm_{code}" for code in index.capabilities)
    return TorchBuild("", (index.cuda, 0), None, architectures).has_kernels_for(capability)
