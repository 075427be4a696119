"""The settings of the process that a call changes for its time: environment, random numbers and Accelerate's state."""

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lora_chat.errors import UsageError
from lora_chat.processes.rank import read_rank
from lora_chat.system.environment import check_path_variables, make_search_paths_absolute
from lora_chat.system.library_settings import ENVIRONMENT, KERNELS_PACKAGE, SMALLER_CACHES, block_hub_code
from lora_chat.system.operating_system import let_segments_grow
from lora_chat.system.visible_cards import ORDER_VARIABLE, PCI_ORDER, VISIBLE_VARIABLE

_CUDA_VARIABLES = (
    *(VISIBLE_VARIABLE, ORDER_VARIABLE),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"),
)
"""Variables that CUDA reads once. If it starts during a call, they stay, because they say how it was started."""
_QUIET_IMPORTS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
_STATES = ("AcceleratorState", "PartialState", "GradientState")
"""Classes of Accelerate whose objects share one state."""


def check_process(name: str) -> None:
    """Raise UsageError in one of several processes, or if a variable for a path cannot be used."""
    if read_rank(os.environ).size > 1 or _is_distributed():
        raise UsageError(
            f"{name} uses one process, and this is one of several. Fix: start the program without torchrun, or "
            "train with `torchrun --nproc-per-node N -m lora_chat sft RECIPE`."
        )
    check_path_variables(os.environ)


@contextmanager
def protected_environment() -> Iterator[None]:
    """Set the environment of the command line for the block."""
    before = dict(os.environ)
    cuda_had_started = _cuda_has_started()
    kernels = sys.modules.get(KERNELS_PACKAGE, _ABSENT)
    try:
        make_search_paths_absolute(os.environ)
        os.environ.update(ENVIRONMENT | _QUIET_IMPORTS | {"PYTHONSAFEPATH": "1"})
        for variable, value in SMALLER_CACHES.items():
            os.environ.setdefault(variable, value)
        if not cuda_had_started:
            os.environ.setdefault(ORDER_VARIABLE, PCI_ORDER)
            let_segments_grow(os.environ)
        block_hub_code()
        yield
    finally:
        if kernels is _ABSENT:
            sys.modules.pop(KERNELS_PACKAGE, None)
        else:
            sys.modules[KERNELS_PACKAGE] = kernels
        cuda_variables = _CUDA_VARIABLES if _cuda_has_started() and not cuda_had_started else ()
        for variable in os.environ.keys() - before.keys() - set(cuda_variables):
            del os.environ[variable]
        os.environ.update({variable: value for variable, value in before.items() if variable not in cuda_variables})


@contextmanager
def restored_random_numbers() -> Iterator[None]:
    """Restore the random states of Python, NumPy and PyTorch; a library that the block imports is seeded again."""
    state = random.getstate()
    with ExitStack() as stack:
        stack.callback(random.setstate, state)
        stack.callback(_save_numpy())
        stack.callback(_save_torch())
        yield


@contextmanager
def restored_accelerate() -> Iterator[None]:
    """Restore the state that all objects of Accelerate share, so that a Trainer of the user works after the block."""
    before = {name: dict(state) for name, state in _accelerate_states().items()}
    try:
        yield
    finally:
        for name, state in _accelerate_states().items():
            state.clear()
            state.update(before.get(name, {}))


_ABSENT: Any = object()


def _save_numpy() -> Callable[[], None]:
    """Return a function that restores NumPy's random state."""
    state = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None

    def restore() -> None:
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed() if state is None else numpy.random.set_state(state)

    return restore


def _save_torch() -> Callable[[], None]:
    """Return a function that restores PyTorch's random states, on cards too if CUDA has started."""
    torch: Any = sys.modules.get("torch")
    state = torch.get_rng_state() if torch else None
    card_states = torch.cuda.get_rng_state_all() if _cuda_has_started() else None

    def restore() -> None:
        torch: Any = sys.modules.get("torch")
        if torch is None:
            return
        torch.seed() if state is None else torch.set_rng_state(state)
        if card_states is not None:
            torch.cuda.set_rng_state_all(card_states)

    return restore


def _cuda_has_started() -> bool:
    """Return whether PyTorch has started CUDA in this process."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "cuda") and bool(torch.cuda.is_initialized())


def _is_distributed() -> bool:
    """Return whether the user's program is connected with other processes through PyTorch."""
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and bool(distributed.is_initialized())


def _accelerate_states() -> dict[str, dict[str, Any]]:
    """Return the shared states of Accelerate by the names of their classes; empty if it is not imported."""
    module: Any = sys.modules.get("accelerate.state")
    return {name: getattr(module, name)._shared_state for name in _STATES} if module else {}
