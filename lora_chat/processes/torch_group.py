"""The group over torch.distributed. Values of the program go as JSON over its store, tensors by its collectives."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from lora_chat.processes.group import ProcessGroup
from lora_chat.processes.rank import Rank

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store, Work

    from lora_chat.processes.watch import Watch

_Value = TypeVar("_Value")
_FIRST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.2
_PAUSE_SHARE = 0.1
"""Pause between two looks at a collective, as a share of the time that it has taken so far."""
_SHORTEST_PAUSE_SECONDS = 20e-6
_LONGEST_WORK_PAUSE_SECONDS = 0.01


class TorchGroup(ProcessGroup):
    """The processes of torch.distributed's default group, which must exist."""

    def __init__(self, rank: Rank, store: "Store", watch: "Watch | None" = None) -> None:
        self.rank = rank
        self._store = store
        self._watch = watch
        self._messages = 0
        """Number of messages over the store so far; it is in their keys and equal in all processes."""

    def sum_(self, tensor: "torch.Tensor") -> "torch.Tensor":
        import torch.distributed as dist

        self._finish(lambda: dist.all_reduce(tensor, async_op=True))
        return tensor

    def exchange(self, values: Sequence[float]) -> list[list[float]]:
        import torch
        import torch.distributed as dist

        own = torch.tensor([*values], dtype=torch.float64)
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        self._finish(lambda: dist.all_gather(everyone, own, async_op=True))
        return [each.tolist() for each in everyone]

    def share_json(self, value: _Value) -> _Value:
        key = self._next_key()
        if self.is_first:
            self._store.set(key, json.dumps(value))
        shared: _Value = self._read(key)
        return shared

    def gather_json(self, value: _Value) -> list[_Value]:
        key = self._next_key()
        self._store.set(f"{key}/{self.rank.index}", json.dumps(value))
        return [self._read(f"{key}/{index}") for index in range(self.size)]

    def close(self) -> None:
        import torch.distributed as dist

        dist.destroy_process_group()

    def is_broken(self) -> bool:
        return self._watch is not None and self._watch.is_broken()

    def _next_key(self) -> str:
        """Return the key of the next message."""
        self._messages += 1
        return f"message/{self._messages}"

    def _read(self, key: str) -> Any:
        """Return a message, which another process may write much later."""
        pause = _FIRST_PAUSE_SECONDS
        with self._waiting():
            while not self._store.check([key]):
                self._check()
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            return json.loads(self._store.get(key))

    def _finish(self, start: "Callable[[], Work]") -> None:
        """Start a collective and wait for it, or raise the failure of the process for which it waits."""
        with self._waiting():
            work = start()
            started = time.monotonic()
            while not work.is_completed():
                self._check()
                pause = _PAUSE_SHARE * (time.monotonic() - started)
                time.sleep(min(max(pause, _SHORTEST_PAUSE_SECONDS), _LONGEST_WORK_PAUSE_SECONDS))
            work.wait()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Mark a wait for others, and raise the failure of another process in place of a broken connection."""
        if self._watch is None:
            yield
            return
        with self._watch.waiting():
            self._watch.check()
            try:
                yield
            except RuntimeError:  # the errors of gloo, NCCL and the store
                self._watch.find_cause()
                self._watch.check()
                raise

    def _check(self) -> None:
        if self._watch:
            self._watch.check()
