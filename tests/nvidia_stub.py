"""A stand-in for NVIDIA's management library and for a CUDA build of PyTorch, without a card.

Only questions are answered: nothing runs on the stub's cards.
"""

import sys
import types
from dataclasses import dataclass

import torch
from torch.torch_version import TorchVersion

GIB = 2**30
CUDA_13_BUILD = ("13.0", ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"])
CUDA_12_BUILD = ("12.6", ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"])


@dataclass(frozen=True)
class Card:
    name: str
    capability: tuple[int, int]
    gib: float
    free: float | None = None
    uuid: str | None = None


RTX_3060 = Card("NVIDIA GeForce RTX 3060", (8, 6), 12)
RTX_4060 = Card("NVIDIA GeForce RTX 4060", (8, 9), 8)
RTX_4090 = Card("NVIDIA GeForce RTX 4090", (8, 9), 24)
RTX_5090 = Card("NVIDIA GeForce RTX 5090", (12, 0), 32)
T4 = Card("Tesla T4", (7, 5), 15)
GTX_1080 = Card("NVIDIA GeForce GTX 1080", (6, 1), 8)
V100 = Card("Tesla V100-SXM2-16GB", (7, 0), 16)


def uuid_of(number):
    return f"GPU-{number:08d}-0000-0000-0000-000000000000"


def install_driver(monkeypatch, *cards, version="580.65.06", cuda=13000, error=None):
    """Put a driver with these cards into the machine, or an NVML that raises an error of this name."""
    nvml = types.ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    nvml.NVMLError = NVMLError
    for name in ("LibraryNotFound", "DriverNotLoaded", "NotSupported", "LibRmVersionMismatch"):
        setattr(nvml, f"NVMLError_{name}", type(f"NVMLError_{name}", (NVMLError,), {}))

    def init():
        if error:
            raise getattr(nvml, f"NVMLError_{error[0]}")(error[1])

    def memory(index):
        card = cards[index]
        if not card.gib:
            raise nvml.NVMLError_NotSupported("Not Supported")
        free = card.gib - 0.5 if card.free is None else card.free
        return types.SimpleNamespace(total=int(card.gib * GIB), free=int(free * GIB))

    nvml.nvmlInit = init
    nvml.nvmlShutdown = lambda: None
    nvml.nvmlSystemGetDriverVersion = lambda: version
    nvml.nvmlSystemGetCudaDriverVersion = lambda: cuda
    nvml.nvmlDeviceGetCount = lambda: len(cards)
    nvml.nvmlDeviceGetHandleByIndex = lambda index: index
    nvml.nvmlDeviceGetName = lambda index: cards[index].name
    nvml.nvmlDeviceGetUUID = lambda index: cards[index].uuid or uuid_of(index)
    nvml.nvmlDeviceGetCudaComputeCapability = lambda index: cards[index].capability
    nvml.nvmlDeviceGetMemoryInfo = memory
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def install_torch(monkeypatch, build=CUDA_13_BUILD, *, works=True, cards=(), started=False):
    """Make PyTorch look like a CUDA build whose CUDA works or not; `cards` are those of the machine, in its order."""
    import os

    version, architectures = build or (None, [])
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.13.0"))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)

    def visible():
        value = os.environ.get("CUDA_VISIBLE_DEVICES")
        if value is None:
            return list(cards)
        uuids = {card.uuid or uuid_of(number): card for number, card in enumerate(cards)}
        return [uuids[entry] if entry in uuids else cards[int(entry)] for entry in value.split(",") if entry != "-1"]

    def properties(index=0):
        card = visible()[index]
        major, minor = card.capability
        return types.SimpleNamespace(name=card.name, total_memory=int(card.gib * GIB), major=major, minor=minor)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: works and bool(visible()))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible()))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: visible()[0].capability >= (8, 0)
    )
