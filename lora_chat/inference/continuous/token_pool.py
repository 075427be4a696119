"""Keys and values of all running requests in one block of memory per layer, in which each request has a range."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TokenRange:
    """Consecutive tokens of the pool."""

    begin: int
    end: int

    @property
    def size(self) -> int:
        """Return the number of tokens."""
        return self.end - self.begin


@dataclass
class TokenPool:
    """Memory for the keys and values of a fixed number of tokens.

    Each layer has two tensors (tokens, key heads, head size), which are made when the first keys of the layer arrive
    and never grow. On a CPU, memory of tokens that were never used is not occupied.
    """

    num_tokens: int
    keys: "dict[int, torch.Tensor]" = field(default_factory=dict)
    values: "dict[int, torch.Tensor]" = field(default_factory=dict)
    _used: list[TokenRange] = field(default_factory=list)
    """Ranges in use, ordered."""

    @property
    def num_used(self) -> int:
        """Return the number of tokens in ranges that are in use."""
        return sum(used.size for used in self._used)

    def allocate(self, num_tokens: int) -> TokenRange | None:
        """Return the first free range of a size, or None if none exists."""
        gap = self._find_gap(num_tokens)
        if gap is None:
            return None
        index, begin = gap
        chosen = TokenRange(begin, begin + num_tokens)
        self._used.insert(index, chosen)
        return chosen

    def can_allocate(self, num_tokens: int) -> bool:
        """Return whether there is a free range of a size."""
        return self._find_gap(num_tokens) is not None

    def _find_gap(self, num_tokens: int) -> tuple[int, int] | None:
        """Return the index of the first free range of a size among those in use, and its first token."""
        begin = 0
        for index, used in enumerate([*self._used, TokenRange(self.num_tokens, self.num_tokens)]):
            if used.begin - begin >= num_tokens:
                return index, begin
            begin = used.end
        return None

    def free(self, tokens: TokenRange) -> None:
        """Give a range back."""
        self._used.remove(tokens)

    def shrink(self, tokens: TokenRange, num_tokens: int) -> TokenRange:
        """Give the end of a range back, and return its beginning of a size."""
        shorter = TokenRange(tokens.begin, tokens.begin + num_tokens)
        self._used[self._used.index(tokens)] = shorter
        return shorter

    def write(self, layer: int, begin: int, keys: "torch.Tensor", values: "torch.Tensor") -> None:
        """Store the keys and values (1, key heads, tokens, head size) of consecutive tokens of one request."""
        end = begin + keys.shape[2]
        pool_keys, pool_values = self._layer(layer, keys, values)
        pool_keys[begin:end] = keys[0].transpose(0, 1)
        pool_values[begin:end] = values[0].transpose(0, 1)

    def write_rows(self, layer: int, indices: "torch.Tensor", keys: "torch.Tensor", values: "torch.Tensor") -> None:
        """Store the keys and values (rows, key heads, 1, head size) of one token of each request."""
        pool_keys, pool_values = self._layer(layer, keys, values)
        pool_keys.index_copy_(0, indices, keys[:, :, 0])
        pool_values.index_copy_(0, indices, values[:, :, 0])

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the keys and values of consecutive tokens in all layers. The two ranges do not overlap."""
        for tensors in (self.keys, self.values):
            for tensor in tensors.values():
                tensor[target : target + num_tokens] = tensor[source : source + num_tokens]

    def _layer(self, layer: int, keys: "torch.Tensor", values: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Return the memory of a layer, which is made for its first keys."""
        if layer not in self.keys:
            for pool, states in ((self.keys, keys), (self.values, values)):
                # Zeros, because a kernel multiplies hidden keys with zero, and uninitialized memory may be non-finite.
                pool[layer] = states.new_zeros(self.num_tokens, states.shape[1], states.shape[3])
        return self.keys[layer], self.values[layer]
