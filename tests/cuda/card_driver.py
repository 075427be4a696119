"""CUDA's driver and runtime for emulated cards: the private functions of `torch._C` on which `torch.cuda` is built.

`torch.cuda` itself stays as it is, so its own code counts devices, reads CUDA_VISIBLE_DEVICES and starts lazily.
"""

import time
import warnings
from dataclasses import dataclass

import fake_card
import torch
import torch.cuda

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
"""Architectures of PyTorch's wheels for CUDA 13.0; see PYTORCH_RELEASES_CODE_CC in torch/cuda/__init__.py."""
CUDA_VERSION = "13.0"
"""Version of CUDA for which the emulated PyTorch is built."""


@dataclass
class Card:
    """One card in the machine, also if CUDA_VISIBLE_DEVICES hides it."""

    name: str
    capability: tuple[int, int]
    memory: int
    """Total memory, in bytes."""
    used_by_others: int
    """Memory of the driver and of other programs, in bytes."""
    uuid: str

    @property
    def has_kernels(self) -> bool:
        """Return whether the wheel's kernels run: the same major architecture, and no newer minor one."""
        versions = [divmod(int(name.removeprefix("sm_")), 10) for name in ARCHITECTURES]
        return any(major == self.capability[0] and minor <= self.capability[1] for major, minor in versions)


@dataclass
class Driver:
    """The installed driver."""

    version: str = "580.95.05"
    cuda: tuple[int, int] = (13, 0)
    """Newest version of CUDA that the driver supports."""


CARDS: list[Card] = []
"""All cards in the machine."""
VISIBLE: list[Card] | None = None
"""Cards that this process sees; None until CUDA has started."""
DRIVER = Driver()


def configure(
    capability=(8, 6),
    memory=12 * 2**30,
    used_by_others=2**28,
    cards=1,
    name="Emulated card",
    driver=None,
    driver_cuda=None,
):
    """Put cards into the machine; each option of a card may be a list with one value for each card."""
    global VISIBLE, DRIVER

    def values(option):
        return option if isinstance(option, list) else [option] * cards

    if isinstance(capability, list) and all(isinstance(number, int) for number in capability):
        capability = tuple(capability)  # JSON has no tuples
    columns = zip(values(name), values(capability), values(memory), values(used_by_others), strict=True)
    CARDS[:] = [
        Card(name, tuple(version), int(total), int(used), f"GPU-{number:08x}-0000-0000-0000-000000000000")
        for number, (name, version, total, used) in enumerate(columns)
    ]
    VISIBLE, DRIVER = None, Driver(driver or Driver.version, tuple(driver_cuda or Driver.cuda))
    _replace_functions()
    torch.cuda._initialized, torch.cuda._cached_device_count = False, None
    fake_card.reset_counters()


def _start():
    """Decide which cards are visible, once, as cuInit does."""
    global VISIBLE
    if VISIBLE is not None:
        return
    if DRIVER.cuda[0] < int(CUDA_VERSION.partition(".")[0]):
        VISIBLE = []
        version = DRIVER.cuda[0] * 1000 + DRIVER.cuda[1] * 10
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version "
            f"{version}). Please update your GPU driver by downloading and installing a new version from the URL: "
            "http://www.nvidia.com/Download/index.aspx",
            stacklevel=3,
        )
    else:
        wanted = torch.cuda._parse_visible_devices()
        if wanted and isinstance(wanted[0], str):
            wanted = torch.cuda._transform_uuid_to_ordinals(wanted, [card.uuid for card in CARDS])
        VISIBLE = []
        for ordinal in wanted:
            if ordinal >= len(CARDS):  # the rest of the list is ignored
                break
            VISIBLE.append(CARDS[ordinal])
    torch.ops.fake_card.set_count(len(VISIBLE))
    for index, card in enumerate(VISIBLE):
        torch.ops.fake_card.set_memory(index, card.memory, card.used_by_others)
    missing = [index for index, card in enumerate(VISIBLE) if not card.has_kernels]
    fake_card.configure_operations(missing, [torch.Generator().manual_seed(0) for _ in VISIBLE])


def _count():
    _start()
    return len(VISIBLE)


def _init():
    if _count() == 0:
        raise RuntimeError("No CUDA GPUs are available")
    torch.cuda.default_generators = tuple(fake_card._generators)
    torch.cuda._get_device_properties = _properties


class _Properties:
    """The properties of a card that libraries read."""

    def __init__(self, card):
        self.name, self.total_memory, self.uuid = card.name, card.memory, card.uuid.removeprefix("GPU-")
        self.major, self.minor = card.capability
        self.multi_processor_count, self.warp_size, self.is_integrated, self.is_multi_gpu_board = 28, 32, 0, 0
        self.max_threads_per_multi_processor, self.regs_per_multiprocessor, self.L2_cache_size = 1536, 65536, 2**21
        self.shared_memory_per_block, self.shared_memory_per_block_optin, self.gcnArchName = 49152, 101376, ""


def _properties(index):
    return _Properties(VISIBLE[index])


class _Runtime:
    """Functions of CUDA's runtime library."""

    class cudaError:
        success = 0

    @staticmethod
    def cudaMemGetInfo(index):
        used, _, total, others = torch.ops.fake_card.memory(index)
        return max(total - others - used, 0), total

    @staticmethod
    def cudaGetErrorString(code):
        return f"error {code}"


def _memory_stats(index):
    used, peak, _, _ = torch.ops.fake_card.memory(index)
    values = {"current": used, "peak": peak, "allocated": peak, "freed": peak - used}
    return {name: {"all": dict(values)} for name in ("allocated_bytes", "reserved_bytes", "active_bytes")} | {
        "num_ooms": 0,
        "num_alloc_retries": 0,
    }


def _exchange_device(index):
    previous = torch.ops.fake_card.current()
    if index >= 0:
        _set_device(index)
    return previous


def _set_device(index):
    if index >= _count():
        raise torch.AcceleratorError("CUDA error: invalid device ordinal")
    torch.ops.fake_card.set_current(index)


class Stream:
    """The only stream of a card; its work is done when it is issued."""

    def __init__(self, device=None, priority=0, **_):
        self.device = torch.device("cuda", torch.cuda._get_device_index(device, optional=True))
        self.device_index, self.stream_id, self.cuda_stream, self.priority = self.device.index, 0, 0, priority

    def __eq__(self, other):
        return isinstance(other, Stream) and self.device == other.device

    def __hash__(self):
        return hash(self.device)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def wait_event(self, event):
        """Do nothing, because the event has happened."""

    def wait_stream(self, stream):
        """Do nothing, because the stream has no work left."""

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def query(self):
        return True

    def synchronize(self):
        fake_card.count_wait("synchronize")


class Event:
    """An event whose time is the host's clock."""

    def __init__(self, enable_timing=False, blocking=False, interprocess=False, external=False):
        self.enable_timing, self.seconds = enable_timing, None

    def record(self, stream=None):
        self.seconds = time.perf_counter()

    def wait(self, stream=None):
        """Do nothing, because the event has happened."""

    def query(self):
        return True

    def synchronize(self):
        fake_card.count_wait("synchronize")

    def elapsed_time(self, end):
        """Return the milliseconds between two events."""
        if not (self.enable_timing and end.enable_timing) or self.seconds is None or end.seconds is None:
            raise ValueError("Both events must be recorded and created with enable_timing=True")
        return (end.seconds - self.seconds) * 1000


def _replace_functions():
    for name, function in {
        "getDeviceCount": _count,
        "init": _init,
        "isInBadFork": lambda: False,
        "getArchFlags": lambda: " ".join(ARCHITECTURES),
        "getDevice": lambda: torch.ops.fake_card.current(),
        "setDevice": _set_device,
        "exchangeDevice": _exchange_device,
        "maybeExchangeDevice": _exchange_device,
        "synchronize": lambda: fake_card.count_wait("synchronize"),
        "emptyCache": lambda: None,
        "ipc_collect": lambda: None,
        "memoryStats": _memory_stats,
        "resetPeakMemoryStats": lambda index: torch.ops.fake_card.reset_peak(index),
        "resetAccumulatedMemoryStats": lambda index: None,
        "getAllocatorBackend": lambda: "native",
        "canDeviceAccessPeer": lambda first, second: False,
        "setMemoryFraction": lambda fraction, index: None,
        "getMemoryFraction": lambda index: 1.0,
        "getDriverVersion": lambda: DRIVER.cuda[0] * 1000 + DRIVER.cuda[1] * 10,
        "getCompiledVersion": lambda: 13000,
        "getCurrentRawStream": lambda index: 0,
    }.items():
        setattr(torch._C, f"_cuda_{name}", function)
    torch._C._has_cuda = True
    torch.version.cuda = CUDA_VERSION
    replaced = {
        "_cudart": _Runtime,
        "_exchange_device": _exchange_device,
        "_maybe_exchange_device": _exchange_device,
        "_raw_device_count_nvml": lambda: len(CARDS),
        "_raw_device_uuid_nvml": lambda: [card.uuid for card in CARDS],
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device=None: Stream(device),
        "default_stream": lambda device=None: Stream(device),
        "set_stream": lambda stream: None,
    }
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    torch.cuda.streams.Event, torch.cuda.streams.Stream = Event, Stream
    for function in (torch.cuda.is_bf16_supported, torch.cuda._check_bf16_tensor_supported):
        if hasattr(function, "cache_clear"):
            function.cache_clear()
