"""NVIDIA's driver and cards as its management library (NVML) reports them, without a CUDA context.

A CUDA context takes hundreds of megabytes of the card, fixes the set of visible cards of the process, and cannot be
created at all when the driver is too old for PyTorch; NVML answers in each of these cases.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NvidiaCard:
    """A card of this machine. Cards are counted in the order of the PCI bus, as in `nvidia-smi`."""

    index: int
    name: str
    uuid: str
    """Identifier such as GPU-8932f937-d72c-4106-c12f-20bd9faed9f6, which CUDA_VISIBLE_DEVICES accepts too."""
    capability: tuple[int, int]
    """Compute capability, such as (8, 6); (0, 0) if the driver does not report it."""
    total_bytes: int
    """Memory of the card, in bytes; 0 if the driver does not report it, as for memory shared with the CPU."""
    free_bytes: int


@dataclass(frozen=True)
class NvidiaDriver:
    """The installed driver."""

    version: str
    """Version such as 580.65.06."""
    cuda: tuple[int, int]
    """Newest CUDA version that the driver supports; (0, 0) if it does not report one."""
    cards: tuple[NvidiaCard, ...]


@dataclass(frozen=True)
class DriverReport:
    """The driver, or the reason why none exists."""

    driver: NvidiaDriver | None
    problem: str = ""
    """Error of NVML, if there is no driver."""
    is_broken: bool = False
    """Whether a driver is installed and does not answer, for example after an update without a restart."""


def read_nvidia_driver() -> DriverReport:
    """Read the driver and its cards."""
    try:
        import pynvml
    except ImportError as error:
        return DriverReport(None, f"the package nvidia-ml-py is missing: {error}")
    # A library without a driver is usual in containers, and on machines whose card was removed.
    absent = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError) as error:
        return DriverReport(None, str(error), is_broken=type(error).__name__ not in absent)
    try:
        return DriverReport(_read_driver(pynvml))
    except pynvml.NVMLError as error:
        return DriverReport(None, str(error), is_broken=True)
    finally:
        pynvml.nvmlShutdown()


def _read_driver(nvml: Any) -> NvidiaDriver:
    """Read the driver from an initialized NVML."""
    number = _read_or(nvml, nvml.nvmlSystemGetCudaDriverVersion, 0)
    cards = tuple(_read_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    return NvidiaDriver(
        version=str(nvml.nvmlSystemGetDriverVersion()),
        cuda=(number // 1000, number % 1000 // 10),  # 12020 is CUDA 12.2
        cards=cards,
    )


def _read_card(nvml: Any, index: int) -> NvidiaCard:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = _read_or(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle), None)
    major, minor = _read_or(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle), (0, 0))
    return NvidiaCard(
        index=index,
        name=str(nvml.nvmlDeviceGetName(handle)),
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        capability=(int(major), int(minor)),
        total_bytes=int(memory.total) if memory else 0,
        free_bytes=int(memory.free) if memory else 0,
    )


def _read_or(nvml: Any, read: Callable[[], Any], default: Any) -> Any:
    """Return a value, or the default if this card or driver does not report it."""
    try:
        return read()
    except nvml.NVMLError:
        return default
