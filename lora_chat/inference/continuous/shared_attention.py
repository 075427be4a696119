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


@dataclass
class ReadStep:
    """The rest of a prompt whose first tokens have keys and values in the pool."""

    pool: TokenPool
    begin: int
    """First token of the prompt in the pool."""
    start: int
    """Number of tokens that are not read again."""
    total: int
    """Length of the prompt."""
    attention: str = "sdpa"


class _Current(threading.local):
    """The step that a thread is computing."""

    step: DecodeStep | None = None
    reading: ReadStep | None = None


_CURRENT = _Current()


def current_step() -> DecodeStep | None:
    """Return the step that this thread is computing, or None while it reads a prompt."""
    return _CURRENT.step


@contextmanager
def computing(step: DecodeStep | ReadStep) -> Iterator[None]:
    """Let attention and products belong to a step until the block ends."""
    try:
        if isinstance(step, ReadStep):
            _CURRENT.reading = step
        else:
            _CURRENT.step = step
        yield
    finally:
        _CURRENT.step = _CURRENT.reading = None


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
    if _CURRENT.reading is not None:
        return _attend_rest(_CURRENT.reading, module, query, key, value, **kwargs), None
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
            if step.attention != "eager":  # as transformers has it; the eager function would add the mask
                mask = torch.ones(1, 1, 1, window, dtype=torch.bool, device=query.device)
        row_keys, row_values = (states[begin:end].transpose(0, 1)[None] for states in (keys, values))
        outputs.append(attend(module, query[row : row + 1], row_keys, row_values, mask, **kwargs)[0])
    return torch.cat(outputs), None


def _attend_rest(
    step: ReadStep, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
) -> torch.Tensor:
    """Compute the attention of the last tokens of a prompt as if the whole prompt were read.

    The kernel gets zeros as the queries of the tokens before them, because it would divide a shorter prompt into other
    blocks, and would then add in another order.
    """
    whole = query.new_zeros(1, query.shape[1], step.total, query.shape[3])
    whole[:, :, step.start :] = query
    output: torch.Tensor = _stock_attention(module, step.attention)(module, whole, key, value, None, **kwargs)[0]
    return output[:, step.start :]


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


class _RestLayer(_StepLayer):
    """A layer of the cache of the rest of a prompt."""

    def __init__(self, index: int, step: ReadStep) -> None:
        CacheLayerMixin.__init__(self)
        self._index, self._rest = index, step

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of the rest, and return those of the whole prompt."""
        step = self._rest
        step.pool.write(self._index, step.begin + step.start, key_states, value_states)
        span = slice(step.begin, step.begin + step.total)
        keys, values = (states[self._index][span].transpose(0, 1) for states in (step.pool.keys, step.pool.values))
        return keys[None].contiguous(), values[None].contiguous()

    def get_seq_length(self) -> int:
        """Return the number of tokens that are not read again."""
        return self._rest.start


def make_rest_cache(step: ReadStep, num_layers: int) -> Cache:
    """Return the cache of the rest of a prompt, in the form that models take."""
    return Cache(layers=[_RestLayer(index, step) for index in range(num_layers)])


def make_step_cache(step: DecodeStep, num_layers: int) -> Cache:
    """Return the cache of a step, in the form that models take."""
    return Cache(layers=[_StepLayer(index, step) for index in range(num_layers)])
