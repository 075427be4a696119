"""The target device of a plan, with its memory and speed."""

from dataclasses import dataclass, replace
from typing import Literal

USABLE_MEMORY_FRACTION = 0.97
"""Share of free memory that a plan may fill without being asked to."""
TIGHT_MEMORY_FRACTION = 0.92
"""Share of free memory above which the error of the estimate can decide whether a run fits."""


@dataclass(frozen=True)
class DeviceSpeed:
    """The speed of a device, measured or from its data sheet."""

    flops: float
    """Floating-point operations per second in 16-bit products with fp32 sums."""
    bandwidth: float
    """Memory bandwidth, in bytes per second."""
    launch: float
    """Seconds to launch the operations of one decoder layer once."""
    low: float
    """Smallest share of `flops` and `bandwidth` that training reaches."""
    high: float
    """Largest share of `flops` and `bandwidth` that training reaches."""
    source: str


@dataclass(frozen=True)
class TargetDevice:
    """The device that a run is planned for, on this machine or not."""

    device: Literal["cuda", "cpu"]
    name: str
    memory: int
    """Total memory, in bytes."""
    free: int
    """Bytes that a run could take, including its context."""
    context: int
    """Bytes that the driver, or on a CPU the program, takes before weights load."""
    at_hand: bool
    loading: int | None = None
    """Context while a base loads, in bytes; None if it was not measured."""
    speed: DeviceSpeed | None = None
    """Speed of the device; None if unknown."""
    bfloat16: bool = True
    capability: tuple[int, int] | None = None
    """Compute capability of a GPU; None if unknown."""
    fragmentation: float = 0.03
    """Gaps between allocated blocks, as a share of the bytes that training allocates and frees."""

    @property
    def limit(self) -> int:
        """Return the bytes that a plan may fill without being asked to."""
        return int(USABLE_MEMORY_FRACTION * self.free)

    def with_memory_limit(self, size: int) -> "TargetDevice":
        """Return this device with at most `size` bytes for a run."""
        return replace(self, free=min(self.free, round(size / USABLE_MEMORY_FRACTION)))
