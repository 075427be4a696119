"""The number of this process in its group."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """The number of a process among all processes, and among those of its machine; both count from 0."""

    index: int = 0
    size: int = 1
    """Processes of the group."""
    local_index: int = 0
    local_size: int = 1
    """Processes of the group on this machine."""

    def __str__(self) -> str:
        return f"process {self.index + 1} of {self.size}"
