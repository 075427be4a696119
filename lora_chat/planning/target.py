"""What a run is planned for: a device with its memory and speed."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from lora_chat.errors import RecipeError

_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(GiB|GB|G|MiB|MB|M)", re.IGNORECASE)
SIZE_PATTERN = r"^(auto|unlimited|\d{1,9}(\.\d{1,9})? ?([Gg]([Ii]?[Bb])?|[Mm]([Ii]?[Bb])?))$"
"""Of `training.memory`."""
_UNITS = {"gib": 2**30, "g": 2**30, "gb": 10**9, "mib": 2**20, "m": 2**20, "mb": 10**6}
USABLE = 0.97
"""Share of free memory that a plan may fill by itself."""
TIGHT = 0.92
"""From here on the model's own error may decide."""


def parse_size(text: str, where: str) -> int:
    """Bytes of `12GiB`, `800 MB` or `12G` (which is 12GiB); raises RecipeError."""
    match = _SIZE.fullmatch(text.strip())
    if not match or not float(match[1]):
        raise RecipeError(f"{where}: {text} is no size. Write it as 12GiB, 12GB or 800MiB.")
    return round(float(match[1]) * _UNITS[match[2].lower()])


@dataclass(frozen=True)
class Speed:
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
class Target:
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
    speed: Speed | None = None
    """None: not known."""
    bfloat16: bool = True
    fragmentation: float = 0.03
    """What lies between blocks, as a share of what training takes for itself."""

    @property
    def limit(self) -> int:
        """Bytes that a plan may fill by itself."""
        return int(USABLE * self.free)

    def limited_to(self, size: int) -> "Target":
        """The same with no more than so many bytes for a run."""
        return replace(self, free=min(self.free, round(size / USABLE)))
