"""Forwards of a sharded base that only the first process computes, such as in validation and in the comparison.

All processes must gather the layers of each forward together. Here the first process says before each forward that it
comes, and the others only give their parts of the weights. They need not know the number of forwards, which for replies
depends on the replies themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lora_chat.errors import RecipeError
from lora_chat.models.sharded_base import find_layers, is_sharded
from lora_chat.processes.group import ProcessGroup, current_group, use_group

_END, _FORWARD = 0.0, 1.0
"""Messages of the first process."""


@contextmanager
def first_process_computes(model: Any) -> Iterator[bool]:
    """Let the first process compute the block, and yield whether this process is to run it.

    If a model is sharded, the first process acts as a group of one in the block and may run any forwards without
    gradients; the others give their weights until the block ends, and should do nothing in it. All processes compute
    the block if a model is not sharded.
    """
    group = current_group()
    if group.size == 1 or not is_sharded(model):
        del model  # a block that frees its model must free it
        yield True
    elif group.is_first:
        with use_group(ProcessGroup()), _announced_forwards(model, group):
            yield True
        group.exchange([_END])
    else:
        give_weights(model, group)
        yield False


def give_weights(model: Any, group: ProcessGroup) -> None:
    """Gather the layers of each forward of the first process until it ends."""
    layers = find_layers(_find_base(model))
    while group.exchange([_END])[0][0] == _FORWARD:
        for layer in layers:
            layer.unshard()
            layer.reshard()


def check_layer_order(model: Any, called: list[Any]) -> None:
    """Raise RecipeError unless each forward of some called each sharded layer once, in their order."""
    layers = find_layers(_find_base(model))
    forwards = len(called) // len(layers)
    if [id(layer) for layer in called] != forwards * [id(layer) for layer in layers]:
        raise RecipeError(
            "base.shard: this base does not run each of its decoder layers once, so it cannot be sharded. "
            "Fix: --set base.shard=false."
        )


@contextmanager
def recorded_layers(model: Any) -> Iterator[list[Any]]:
    """Record the decoder layers that forwards call until the block ends."""
    called: list[Any] = []
    handles = [
        layer.register_forward_pre_hook(lambda module, inputs: called.append(module))
        for layer in find_layers(_find_base(model))
    ]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def recover_from_error(model: Any) -> None:
    """Let a sharded model run again after an error in a forward or backward that all processes had."""
    _find_base(model).base_model.reset_iter_state()


@contextmanager
def _announced_forwards(model: Any, group: ProcessGroup) -> Iterator[None]:
    """Tell the other processes before each forward until the block ends."""
    decoder = _find_base(model).base_model

    def announce(module: Any, inputs: Any) -> None:
        group.exchange([_FORWARD])

    def forget(module: Any, inputs: Any, output: Any) -> None:
        decoder.reset_iter_state()  # else the next backward would gather layers of this forward, in this process only

    # Before PyTorch's own hook, which gathers weights.
    handles = decoder.register_forward_pre_hook(announce, prepend=True), decoder.register_forward_hook(forget)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _find_base(model: Any) -> Any:
    """Return the base of a model with or without an adapter."""
    return getattr(model, "get_base_model", lambda: model)()
