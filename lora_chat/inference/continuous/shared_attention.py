"""Attention of a step in which each row is another request: a row attends to its own keys and values in the pool.

No row is padded, and the model's own attention function computes each row as if the request were the only one, so a
reply has the same bits beside any other requests.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from lora_chat.inference.continuous.token_pool import TokenPool

ATTENTION_NAME = "lora_chat_requests"


@dataclass
class DecodeStep:
    """The rows of a step, each the next token of a request."""

    pool: TokenPool
    spans: list[tuple[int, int]]
    """First token of each request in the pool, and the token after its last one."""
    indices: torch.Tensor
    """Tokens of the pool whose keys and values this step computes."""
    attention: str = "sdpa"
    """Attention function that the model uses for a single request."""
    groups: tuple[tuple[str, int, int], ...] | None = None
    """Adapters with the first of their rows and the row after their last; None: PEFT's active adapter is used."""
    windows: dict[int, int] = field(default_factory=dict)
    """Sliding windows of the layers that have one, in tokens."""


class _Current(threading.local):
    """The step that a thread is computing."""

    step: DecodeStep | None = None


_CURRENT = _Current()


def current_step() -> DecodeStep | None:
    """Return the step that this thread is computing, or None while it reads a prompt."""
    return _CURRENT.step


@contextmanager
def computing(step: DecodeStep) -> Iterator[None]:
    """Let attention and products belong to a step until the block ends."""
    _CURRENT.step = step
    try:
        yield
    finally:
        _CURRENT.step = None


def register_shared_attention() -> str:
    """Register the function with transformers. Return its name for `set_attn_implementation`.

    It has no mask function, so transformers builds no mask.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, shared_attention)
    return ATTENTION_NAME


def shared_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the attention of one token of each request: query (requests, heads, 1, head size)."""
    step = _CURRENT.step
    if step is None or query.shape[0] != len(step.spans) or query.shape[2] != 1:
        raise RuntimeError("Attention over requests was called outside of a step.")
    layer: Any = module.layer_idx
    keys, values = step.pool.keys[layer], step.pool.values[layer]
    window = step.windows.get(layer)
    attend = _stock_attention(module, step.attention)
    outputs = []
    for row, (begin, end) in enumerate(step.spans):
        mask = None
        if window is not None and end - begin >= window:
            begin = end - window
            mask = torch.ones(1, 1, 1, window, dtype=torch.bool, device=query.device)  # as transformers has it
        row_keys, row_values = (states[begin:end].transpose(0, 1)[None] for states in (keys, values))
        outputs.append(attend(module, query[row : row + 1], row_keys, row_values, mask, **kwargs)[0])
    return torch.cat(outputs), None


def _stock_attention(module: torch.nn.Module, name: str) -> Any:
    """Return an attention function of transformers, or the eager one in the file of the module."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


class _StepLayer(CacheLayerMixin):
    """A layer of the cache of a step, which writes into the pool."""

    def __init__(self, index: int, step: DecodeStep) -> None:
        super().__init__()
        self._index, self._step = index, step
        self.is_sliding = index in step.windows

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing, because the pool makes the memory of a layer."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of the step's tokens. Attention reads from the pool, not from the result."""
        self._step.pool.write_rows(self._index, self._step.indices, key_states, value_states)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys and the first one, which no mask uses."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of earlier tokens of the longest request."""
        return max(end - begin for begin, end in self._step.spans) - 1

    def get_max_length(self) -> int:
        """Return that there is no maximum."""
        return -1


def make_step_cache(step: DecodeStep, num_layers: int) -> Cache:
    """Return the cache of a step, in the form that models take."""
    return Cache(layers=[_StepLayer(index, step) for index in range(num_layers)])
