"""Counter of the bytes of live tensors on the meta device."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

_BLOCK = 512
"""Block size of the CUDA allocator, in bytes."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of the bytes of live storages and of their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.phase = "weights"
        """`weights`, then `forward`, then `backward` of the last layer, then `earlier` layers."""
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        return result

    def count(self, tensor: torch.Tensor) -> None:
        """Add a tensor's storage unless it is known; subtract it when nothing refers to it."""
        storage = tensor.untyped_storage()
        if storage in self._known or tensor.device.type != "meta":  # not in GPU memory
            return
        self._known[storage] = True
        self.add(storage.nbytes(), 1)
        weakref.finalize(storage, self.add, storage.nbytes(), -1)

    def add(self, size: int, times: int) -> None:
        """Add (1) or subtract (-1) a storage of `size` bytes."""
        self.now += times * -(-size // _BLOCK) * _BLOCK
        self.peak = max(self.peak, self.now)

    def enter(self, phase: str) -> None:
        """Begin another part of the step."""
        self.phase = phase
