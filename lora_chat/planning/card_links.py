"""The links between the cards of a machine, and the seconds of a message over them."""

import re
from dataclasses import dataclass

from lora_chat.errors import UsageError
from lora_chat.planning.device import TargetDevice
from lora_chat.planning.gpu_specs import GpuSpec, find_gpu_spec

_NCCL = "the tuning tables of NVIDIA's NCCL (src/graph/topo.h, topo.cc and tuning.cc at commit 5067397)"
_PCIE_LANE_BANDWIDTH = {"3.0": 0.75e9, "4.0": 1.5e9, "5.0": 3e9}
"""Bytes per second and direction of one PCIe lane: NCCL's 12 GB/s for 16 lanes of PCIe 3.0, doubled by generation."""
_NVLINK_BANDWIDTH = {(8, 0): 20e9, (9, 0): 20.6e9, (10, 0): 40.1e9}
"""Bytes per second and direction of one NVLink by compute capability, from NCCL."""
_COLLECTIVE_SECONDS = 8.4e-6
"""Seconds to start a collective in a ring, from NCCL's protocol `Simple`."""
_PCIE_HOP_SECONDS, _NVLINK_HOP_SECONDS = 5.7e-6, 3.4e-6
"""Seconds of one hop of a ring beside the transfer, from NCCL's protocol `Simple`."""
_USUAL_BUSES = (((9, 0), "PCIe 5.0 x16"), ((8, 0), "PCIe 4.0 x16"), ((0, 0), "PCIe 3.0 x16"))
"""Bus of an unlisted card, by the lowest compute capability."""


@dataclass(frozen=True)
class CardLink:
    """A link between neighbouring cards of a ring, or between processes of a CPU."""

    name: str
    bandwidth: float
    """Bytes per second in each direction."""
    start: float
    """Seconds of a collective beside its hops."""
    hop: float
    """Seconds of a hop beside its transfer."""
    slowest: float
    """Largest ratio of actual and planned seconds: cards that cannot reach each other go through main memory."""
    source: str

    def all_reduce_seconds(self, size: int, count: int) -> float:
        """Return the seconds of a sum over `count` cards, each with `size` bytes, in a ring."""
        # Each card sends 2 (n - 1) parts of size / n.
        return self._ring_seconds(2 * (count - 1), size / count)

    def all_gather_seconds(self, size: int, count: int) -> float:
        """Return the seconds until each card has all `size` bytes, of which each has 1 / `count`, in a ring."""
        return self._ring_seconds(count - 1, size / count)

    def _ring_seconds(self, hops: int, part_size: float) -> float:
        """Return the seconds of a number of hops with parts of this size; none without hops."""
        return self.start + hops * (self.hop + part_size / self.bandwidth) if hops else 0.0


CPU_LINK = CardLink(
    "gloo",
    bandwidth=1.9e9,
    start=1e-4,
    hop=5e-5,
    slowest=4.0,
    source="gloo between 2 processes on 2 cores of an AMD EPYC, measured",
)
"""Link between processes of one machine on a CPU. Four processes on these two cores had half of its bandwidth."""


def find_card_link(target: TargetDevice) -> CardLink:
    """Return the link between several cards of this kind in one machine, or between processes on a CPU."""
    if target.device == "cpu":
        return CPU_LINK
    try:
        spec = find_gpu_spec(target.name)
    except UsageError:  # a card without a data sheet, or a size of memory
        capability = target.capability or (0, 0)
        return make_pcie_link(next(bus for lowest, bus in _USUAL_BUSES if capability >= lowest))
    return _make_nvlink(spec) if spec.nvlinks else make_pcie_link(spec.bus)


def make_pcie_link(bus: str) -> CardLink:
    """Return the link of a bus such as `PCIe 4.0 x8`."""
    match = re.fullmatch(r"PCIe (\d\.\d) x(\d+)", bus)
    if match is None:
        raise ValueError(f"unknown bus {bus}")
    return CardLink(
        bus,
        bandwidth=_PCIE_LANE_BANDWIDTH[match[1]] * int(match[2]),
        start=_COLLECTIVE_SECONDS,
        hop=_PCIE_HOP_SECONDS,
        slowest=2.0,
        source=_NCCL,
    )


def _make_nvlink(spec: GpuSpec) -> CardLink:
    """Return the link between cards with NVLink to all others."""
    return CardLink(
        f"NVLink ({spec.nvlinks} links)",
        bandwidth=_NVLINK_BANDWIDTH[spec.capability] * spec.nvlinks,
        start=_COLLECTIVE_SECONDS,
        hop=_NVLINK_HOP_SECONDS,
        slowest=2.0,
        source=_NCCL,
    )
