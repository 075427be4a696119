"""The modes of PyTorch in which a call computes, whatever modes the user's program has chosen."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def default_tensors() -> Iterator[None]:
    """Compute in the modes with which PyTorch starts: they would change the weights of a run, or make it fail.

    These are the default precision float32, the default device CPU, gradients, no autocast and no inference mode.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:  # a call that imports it gets these modes
        yield
        return
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
