"""The installed build of PyTorch: the driver that it needs, the cards that it has kernels for, and other builds."""

import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lora_chat.system.nvidia_driver import NvidiaDriver

_MIN_DRIVERS = {13: "580", 12: "525.60.13", 11: "450.80.02"}
"""Oldest driver for each major version of CUDA.

A newer minor version of CUDA runs on it too. Sources, tables of minor-version compatibility:
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html and
https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
"""


@dataclass(frozen=True)
class WheelIndex:
    """A package index with builds of PyTorch for one version of CUDA."""

    name: str
    cuda: int
    """Major version of CUDA."""
    versions: tuple[str, str | None]
    """First version of PyTorch that lora_chat can use, and the first one that the index lacks."""
    capabilities: tuple[int, ...]
    """Compute capabilities with kernels, times 10, on x86 under Linux and Windows."""

    @property
    def url(self) -> str:
        """Return the address of the index."""
        return f"https://download.pytorch.org/whl/{self.name}"

    def has_version(self, version: str) -> bool:
        """Return whether the index has a version of PyTorch."""
        first, missing = self.versions
        return parse_version(version) >= parse_version(first) and (
            missing is None or parse_version(version) < parse_version(missing)
        )

    @property
    def newest_rank(self) -> tuple[int, ...]:
        """Return a rank that is higher for an index with newer versions."""
        return parse_version(self.versions[1]) if self.versions[1] else (1000,)


WHEEL_INDEXES = (
    WheelIndex("cu130", 13, ("2.10", None), (75, 80, 86, 90, 100, 120)),
    WheelIndex("cu128", 12, ("2.10", "2.12"), (75, 80, 86, 90, 100, 120)),
    WheelIndex("cu126", 12, ("2.10", "2.15"), (50, 60, 70, 75, 80, 86, 90)),
)
"""Indexes for PyTorch 2.10 and newer, newest first. Sources: RELEASE.md of PyTorch (support matrix of CUDA) in pull
requests 175253 (2.10, 2.11), 182849 (2.12), 187075 (2.13) and 194367 (2.14), and issue 190385 (no cu126 from 2.15)."""


@dataclass(frozen=True)
class TorchBuild:
    """Facts about the installed PyTorch that need no device."""

    version: str
    """Version without the suffix of the build, such as 2.13.0."""
    cuda: tuple[int, int] | None
    """Version of CUDA that it was built for; None for a build without CUDA."""
    rocm: str | None
    architectures: tuple[str, ...]
    """Targets of its kernels, such as sm_86 and compute_120; empty without CUDA."""

    @property
    def name(self) -> str:
        """Return the name of the build for messages."""
        kind = f"CUDA {self.cuda[0]}.{self.cuda[1]}" if self.cuda else f"ROCm {self.rocm}" if self.rocm else "CPU only"
        return f"PyTorch {self.version} ({kind})"

    @property
    def min_driver(self) -> str | None:
        """Return the oldest driver that it runs with, or None without CUDA."""
        return _MIN_DRIVERS.get(self.cuda[0]) if self.cuda else None

    def runs_on_driver(self, driver: NvidiaDriver) -> bool:
        """Return whether a driver is new enough."""
        return self.min_driver is None or parse_version(driver.version) >= parse_version(self.min_driver)

    def has_kernels_for(self, capability: tuple[int, int]) -> bool:
        """Return whether kernels or PTX code run on a card; unknown capabilities and builds are assumed to run.

        Binary code runs on cards of the same major version and the same or a higher minor version, PTX on all newer
        cards: https://docs.nvidia.com/cuda/blackwell-compatibility-guide/
        """
        if not self.architectures or capability == (0, 0):
            return True
        return any(_runs_on(architecture, capability) for architecture in self.architectures)


def read_torch_build() -> TorchBuild:
    """Return the facts about the installed PyTorch. No CUDA context is created."""
    import torch

    cuda = torch.version.cuda
    return TorchBuild(
        version=torch.__version__.split("+")[0],
        cuda=(parse_version(cuda)[0], parse_version(f"{cuda}.0")[1]) if cuda else None,
        rocm=torch.version.hip,
        architectures=() if torch.version.hip else tuple(torch.cuda.get_arch_list()),
    )


def suggest_wheel(driver: NvidiaDriver, capability: tuple[int, int], build: TorchBuild) -> str | None:
    """Return the pip command that installs a build for this driver and card, or None if no index has one."""
    suitable = [index for index in WHEEL_INDEXES if _is_suitable(index, driver, capability)]
    if not suitable:
        return None
    # Prefer the installed version, then the newest version.
    index = max(suitable, key=lambda index: (index.has_version(build.version), index.newest_rank))
    return f"{pip_command()} {_requirement(index, build.version)} --index-url {index.url}"


def pip_command() -> str:
    """Return the command that installs packages into this environment."""
    if sys.prefix == sys.base_prefix:
        return "python -m pip install"
    return f"{Path(sys.prefix) / ('Scripts' if os.name == 'nt' else 'bin') / 'python'} -m pip install"


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, such as (535, 183, 1)."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def read_installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_suitable(index: WheelIndex, driver: NvidiaDriver, capability: tuple[int, int]) -> bool:
    """Return whether the builds of an index run with a driver and have kernels for a card."""
    if parse_version(driver.version) < parse_version(_MIN_DRIVERS[index.cuda]):
        return False
    if index.name == "cu126" and not _is_x86():
        return False  # its builds for ARM have kernels for two data-center cards only
    return capability == (0, 0) or any(_runs_on(f"sm_{code}", capability) for code in index.capabilities)


def _requirement(index: WheelIndex, installed: str) -> str:
    """Return the requirement for pip, of the installed version if the index has it."""
    first, missing = index.versions
    if index.has_version(installed):
        return f'"torch=={installed}+{index.name}"'
    # pip would keep an installed version, because builds of one version differ only in their suffix.
    return f'--force-reinstall "torch>={first}{f",<{missing}" if missing else ""}"'


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Return whether a target such as sm_86, sm_90a or compute_120 runs on a card."""
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if match is None:
        return False
    code = int(match[2]), int(match[3])
    if match[4] == "a":  # code with features of one architecture runs on that one only
        return code == capability
    if match[1] == "sm" or match[4] == "f":
        return code[0] == capability[0] and code[1] <= capability[1]
    return code <= capability


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")
