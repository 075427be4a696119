"""What the processes of a group tell each other. The group of one process says everything to itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from lora_chat.errors import IntegrityError
from lora_chat.processes.rank import Rank

if TYPE_CHECKING:
    import torch

_Value = TypeVar("_Value")


class ProcessGroup:
    """A group of one process. Groups of several replace the first five methods, which all their processes call.

    The calls must come in the same order in all processes.
    """

    rank: Rank = Rank()

    def sum_(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """Replace a tensor by its sum over the processes, with the same bits in all of them, and return it."""
        return tensor

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        """Return the values of every process, in the order of their ranks. All processes give the same number."""
        return [[float(value) for value in values]]

    def share_json(self, value: _Value) -> _Value:
        """Return the first process's value as read from JSON; the other processes give anything.

        The first process may come much later than the others.
        """
        return value

    def gather_json(self, value: _Value) -> list[_Value]:
        """Return the value of every process as read from JSON, in the order of their ranks."""
        return [value]

    def close(self) -> None:
        """Close the connections. All processes call it after their last exchange."""

    def is_broken(self) -> bool:
        """Return whether another process has failed, as far as this one knows now."""
        return False

    @property
    def size(self) -> int:
        """Return the number of processes."""
        return self.rank.size

    @property
    def is_first(self) -> bool:
        """Return whether this process writes the run."""
        return self.rank.index == 0

    def largest(self, value: float) -> float:
        """Return the largest value of all processes."""
        return max(values[0] for values in self.exchange([value]))

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.gather_json(None)

    def check_equal(self, what: str, digest: str) -> None:
        """Raise IntegrityError in every process if a digest differs among them; `what` names its content."""
        digests = self.gather_json(digest)
        different = [index + 1 for index, other in enumerate(digests) if other != digests[0]]
        if different:
            numbers = ", ".join(map(str, different))
            raise IntegrityError(
                f"The processes of this run have different {what}: {numbers} of {self.size} differ from the first. "
                "Fix: use the same files, packages and kind of device for all processes, then continue with --resume."
            )


_groups: list[ProcessGroup] = [ProcessGroup()]


def current_group() -> ProcessGroup:
    """Return the group of this process; a process that was started by itself has one of its own."""
    return _groups[-1]


@contextmanager
def use_group(group: ProcessGroup) -> Iterator[ProcessGroup]:
    """Make a group the current one until the block ends."""
    _groups.append(group)
    try:
        yield group
    finally:
        _groups.remove(group)
