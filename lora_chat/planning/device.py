"""What a run is planned for: a device with its memory and speed."""

from dataclasses import dataclass, replace
from typing import Literal

USABLE_MEMORY_FRACTION = 0.97
"""Share of free memory that a plan may fill by itself."""
TIGHT_MEMORY_FRACTION = 0.92
"""From here on the model's own error may decide."""


@dataclass(frozen=True)
class DeviceSpeed:
    """How fast a device computes, as far as it is known."""

    flops: float
    """Floating-point operations a second of its 16-bit products, with fp32 sums."""
    bandwidth: float
    """Bytes a second of its memory."""
    launch: float
    """Seconds to start the operations of one decoder layer once."""
    low: float
    high: float
    """Shares of `flops` and `bandwidth` between which training comes out."""
    source: str


@dataclass(frozen=True)
class TargetDevice:
    """A device at hand, or one that is only imagined."""

    device: Literal["cuda", "cpu"]
    name: str
    memory: int
    """Bytes in all."""
    free: int
    """Bytes that a run could take, its context included."""
    context: int
    """What the driver, or on a CPU the program itself, takes before anything is loaded."""
    at_hand: bool
    loading: int | None = None
    """The same while a base is loaded, where that is known."""
    speed: DeviceSpeed | None = None
    """None: not known."""
    bfloat16: bool = True
    fragmentation: float = 0.03
    """What lies between blocks, as a share of what training takes for itself."""

    @property
    def limit(self) -> int:
        """Bytes that a plan may fill by itself."""
        return int(USABLE_MEMORY_FRACTION * self.free)

    def with_memory_limit(self, size: int) -> "TargetDevice":
        """The same with no more than so many bytes for a run."""
        return replace(self, free=min(self.free, round(size / USABLE_MEMORY_FRACTION)))
