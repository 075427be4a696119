"""Emulated CUDA cards for a CPU build of PyTorch: CUDA's device rules and dispatch, computed by the CPU's kernels.

Importing this module loads the cards, so it must come before the first import of PyTorch. `install` then configures
them. README.md lists what is emulated and what is not.

- OPERATIONS counts the operations on the cards without views, which is about the number of kernels.
- WAITS counts where the host waits for a card: kind and callers, as "read sft.py:12 < trainer.py:34". The kinds are
  `read` (a value or tensor is copied to the host), `upload` (a tensor is copied to the card with non_blocking=False),
  `shape` (an operation whose result has a size that depends on values), `synchronize` (an explicit wait).
- `reset_counters`, `peak_bytes`, `set_free_bytes` are for tests.
"""

import collections
import sys
import threading
from pathlib import Path

import build_card

assert "torch" not in sys.modules, "PyTorch looks for CUDA when it is imported, so the card must be loaded before"
build_card.load_library()
import torch  # noqa: E402

OPERATIONS: collections.Counter[str] = collections.Counter()
WAITS: collections.Counter[str] = collections.Counter()
STAND_INS = {}
"""Functions on tensors in main memory for operations that have no CPU kernel."""

VIEWS = {
    "alias",
    "as_strided",
    "detach",
    "diagonal",
    "expand",
    "permute",
    "select",
    "slice",
    "split",
    "split_with_sizes",
}
VIEWS |= {"squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view", "view_as_real", "_reshape_alias"}
NO_KERNEL = VIEWS | {"empty", "empty_strided", "set_", "resize_", "record_stream"}
"""Operations that start nothing on a card."""
COPIES = {"copy_", "_local_scalar_dense"}
"""Operations that need no kernel if the dtype stays the same."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
"""Operations whose indices may be in main memory."""
UNKNOWN_SIZE = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
ONLY_CARD_TENSORS = {"cat", "stack", "mm", "bmm", "addmm", "baddbmm", "embedding", "gather", "index_select"}
"""Operations that refuse even a tensor without dimensions in main memory."""

_kernels_missing: set[int] = set()
"""Indices of the cards for which PyTorch has no kernels."""
_generators: list[torch.Generator] = []
"""Random generators of the cards, which are the default of operations without one."""
_lock = threading.Lock()


def install(**options):
    """Configure the cards of this process; see `card_driver.configure` for the options."""
    import card_driver
    import card_kernels

    if not hasattr(install, "library"):
        card_kernels.register(STAND_INS)
        install.library = _register_operations()
    card_driver.configure(**options)


def configure_operations(kernels_missing, generators):
    """Set which cards lack kernels, and the generator of each card."""
    _kernels_missing.clear()
    _kernels_missing.update(kernels_missing)
    _generators[:] = generators


def reset_counters():
    """Clear the counters of operations and waits and the peaks of memory."""
    OPERATIONS.clear()
    WAITS.clear()
    for index in range(len(_generators)):
        torch.ops.fake_card.reset_peak(index)


def peak_bytes(card=0):
    """Return the largest number of bytes that this process had on a card."""
    return torch.ops.fake_card.memory(card)[1]


def set_free_bytes(free, card=0):
    """Let other programs use so much of a card that `free` bytes are left."""
    used, _, total, _ = torch.ops.fake_card.memory(card)
    torch.ops.fake_card.set_memory(card, total, total - used - free)


def count_wait(kind):
    """Count a wait of the host for a card, with the nearest callers outside the libraries that compute."""
    callers, frame = [], sys._getframe(1)
    while frame is not None and len(callers) < 3:
        name = frame.f_code.co_filename
        if "/torch/" not in name and not name.startswith("<") and Path(name).parent != Path(__file__).parent:
            callers.append(f"{Path(name).name}:{frame.f_lineno}")
        frame = frame.f_back
    with _lock:
        WAITS[f"{kind} {' < '.join(callers)}"] += 1


def _register_operations():
    """Send every operation on the cards to `_run`, also those that have a kernel for all devices."""
    libraries = [torch.library.Library("_", "IMPL")]
    libraries[0].fallback(_run, "CUDA")
    names = [("aten", "copy_"), ("torch_attn", "_varlen_attn"), ("torch_attn", "_varlen_attn_backward")]
    if "bitsandbytes" in sys.modules:
        public = [name for name in dir(torch.ops.bitsandbytes) if not name.startswith("_") and name != "name"]
        names += [("bitsandbytes", name) for name in public]
    for space, name in names:
        library, packet = torch.library.Library(space, "IMPL"), getattr(getattr(torch.ops, space), name)
        libraries.append(library)
        for overload in packet.overloads():
            operation = getattr(packet, overload)
            schema_name = name if overload == "default" else f"{name}.{overload}"
            library.impl(schema_name, lambda *a, operation=operation, **k: _run(operation, *a, **k), "CUDA")
    return libraries


def _run(operation, *args, **kwargs):
    """Run an operation with the CPU's kernel after the checks that CUDA makes."""
    name = operation._schema.name.partition("::")[2]
    tensors = list(_tensors((*args, *kwargs.values())))
    cards = {tensor.device.index for tensor in tensors if tensor.is_cuda}
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "cuda":
        cards.add(torch.ops.fake_card.current() if torch.device(device).index is None else torch.device(device).index)
    if name == "copy_":
        card = _check_copy(*args)
    else:
        _check_devices(operation, name, args, kwargs, tensors, cards)
        card = min(cards, default=None)
        _count_hidden_waits(name, args)
    if card is not None:
        if not _generators:
            torch.cuda.init()
        _count_operation(name, card)
        _set_generator(operation, name, card, kwargs)
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    return _run_on_host(operation, name, card, args, kwargs)


def _run_on_host(operation, name, card, args, kwargs):
    """Run an operation on the host's tensors and return its results on the card."""
    seen = {}
    args = [_lower(value, seen) for value in args]
    kwargs = {key: _lower(value, seen) for key, value in kwargs.items()}
    if name.startswith("bitwise_"):  # these overloads take no numbers from Python
        args = [torch.tensor(value) if isinstance(value, int) else value for value in args]
    result = STAND_INS.get(operation, operation)(*args, **kwargs)
    for tensor, host in seen.values():
        if _layout(tensor) != _layout(host):
            torch.ops.fake_card.assign(tensor, torch.ops.fake_card.to_card(host, tensor.device.index))
    return _lift(result, seen, None if name == "copy_" else card)


def _lower(value, seen):
    """Return the host's tensors for tensors on a card, and remember them in `seen`."""
    if isinstance(value, torch.Tensor) and value.is_cuda:
        host = torch.ops.fake_card.to_host(value)
        seen[id(host)] = value, host
        return host
    return [_lower(item, seen) for item in value] if isinstance(value, list | tuple) else value


def _lift(value, seen, card):
    """Return the card's tensors for the host's tensors of a result."""
    if isinstance(value, torch.Tensor):
        if id(value) in seen:
            return seen[id(value)][0]
        return value if card is None else torch.ops.fake_card.to_card(value, card)
    return type(value)(_lift(item, seen, card) for item in value) if isinstance(value, list | tuple) else value


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _layout(tensor):
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.untyped_storage().nbytes()


def _check_devices(operation, name, args, kwargs, tensors, cards):
    """Raise the error of CUDA for tensors on different devices."""
    if not any(tensor.is_cuda for tensor in tensors) or name in ("set_", "record_stream"):
        return
    if name in INDEXING:
        tensors = [args[0], *[tensor for tensor in _tensors(args[1]) if tensor.is_cuda], *_tensors(args[2:])]
    written = args[0] if name.endswith("_") else kwargs.get("out")
    hosts = [tensor for tensor in tensors if not tensor.is_cuda]
    wrong = [t for t in hosts if t.dim() or t is written or name in ONLY_CARD_TENSORS]
    if wrong or len(cards) > 1:
        devices = sorted({str(tensor.device) for tensor in tensors})
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {' and '.join(devices)}! "
            f"(when checking arguments of {operation})"
        )


def _check_copy(target, source, non_blocking=False):
    """Count the wait of a copy, raise an error if it needs a kernel that is missing, and return its card."""
    if not target.is_cuda:
        count_wait("read")
    elif not source.is_cuda and not non_blocking:
        count_wait("upload")
    card = target.device.index if target.is_cuda else source.device.index
    if card in _kernels_missing and (target.dtype != source.dtype or not source.is_contiguous()):
        raise _no_kernel_error()
    return card


def _count_operation(name, card):
    """Count an operation, and raise an error if its kernel is missing."""
    if name in NO_KERNEL:
        return
    with _lock:
        OPERATIONS[name] += 1
    if card in _kernels_missing and name not in COPIES:
        raise _no_kernel_error()


def _count_hidden_waits(name, args):
    if name in ("_local_scalar_dense", "equal", "is_nonzero"):
        count_wait("read")
    elif name in UNKNOWN_SIZE or (
        name in INDEXING and any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1]))
    ):
        count_wait("shape")


def _set_generator(operation, name, card, kwargs):
    """Let random numbers come from the card's generator."""
    takes_one = any(argument.name == "generator" for argument in operation._schema.arguments)
    if takes_one or name == "native_dropout":
        if kwargs.get("generator") not in (None, *_generators):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if kwargs.get("generator") is None:
            kwargs["generator"] = _generators[card]


def _no_kernel_error():
    return torch.AcceleratorError(
        "CUDA error: no kernel image is available for execution on the device\n"
        "CUDA kernel errors might be asynchronously reported at some other API call."
    )
