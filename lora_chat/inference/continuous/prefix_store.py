"""Keys and values of prompts that were read, for later prompts that are the same or begin in the same way."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.inference.continuous.token_pool import TokenPool, TokenRange

if TYPE_CHECKING:
    import torch

SHARED_BLOCK = 16
"""Tokens of a prompt that are reused together, because attention adds the weights of 16 tokens at once."""
MIN_REST = 16
"""Smallest number of tokens that are read again; products of very few rows may have other bits."""
_MIN_PROMPT = 16
"""Length of the shortest prompt whose keys and values are worth keeping."""


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt with its keys and values."""

    adapter: str | None
    prompt: tuple[int, ...]
    tokens: TokenRange
    """Range of the pool that begins with the prompt's keys and values."""
    logits: "torch.Tensor"
    """Logits (vocabulary,) of the next token."""


@dataclass(frozen=True)
class Reuse:
    """The beginning of a prompt that was read before."""

    source: ReadPrompt
    num_tokens: int
    """Number of tokens that both prompts begin with; all of them if the prompts are equal."""


class PrefixStore:
    """Prompts of requests that ended, of which the one that was not used for the longest time is dropped first."""

    def __init__(
        self, pool: TokenPool, max_tokens: int, max_shared_prompt: int | None, bytes_per_token: int = 1
    ) -> None:
        """Keep at most `max_tokens`. Prompts of at most `max_shared_prompt` tokens share parts; None: all do."""
        self._pool, self._max_tokens, self._max_shared_prompt = pool, max_tokens, max_shared_prompt
        self._bytes_per_token = bytes_per_token
        self._kept: OrderedDict[tuple[str | None, tuple[int, ...]], ReadPrompt] = OrderedDict()
        self._num_tokens = 0

    def find(self, adapter: str | None, prompt: tuple[int, ...], running: Iterable[ReadPrompt]) -> Reuse | None:
        """Return the read prompt of the same adapter that has most in common with a prompt."""
        equal = self._kept.get((adapter, prompt))
        candidates = [read for read in (*running, *self._kept.values()) if read.adapter == adapter]
        equal = equal or next((read for read in candidates if read.prompt == prompt), None)
        if equal is not None:
            return self._use(Reuse(equal, len(prompt)))
        if not self._is_shared(prompt):
            return None
        best: Reuse | None = None
        for read in candidates:
            if self._is_shared(read.prompt):
                common = min(_common_length(read.prompt, prompt), len(prompt) - MIN_REST)
                # The last block of a shorter prompt was not complete.
                common -= common % SHARED_BLOCK
                if common > (best.num_tokens if best else 0):
                    best = Reuse(read, common)
        return self._use(best) if best else None

    def _is_shared(self, prompt: Sequence[int]) -> bool:
        """Return whether a prompt shares parts of its keys and values with other prompts."""
        return self._max_shared_prompt is None or len(prompt) <= self._max_shared_prompt

    def _use(self, reuse: Reuse) -> Reuse:
        """Remember that a prompt was used."""
        key = (reuse.source.adapter, reuse.source.prompt)
        if key in self._kept:
            self._kept.move_to_end(key)
        return reuse

    def keep(self, read: ReadPrompt) -> None:
        """Take over the range of a request that ended, and drop others if there are too many tokens."""
        key = (read.adapter, read.prompt)
        size = self._size(read)
        if len(read.prompt) < _MIN_PROMPT or size > self._max_tokens or key in self._kept:
            self._pool.free(read.tokens)
            return
        while self._num_tokens + size > self._max_tokens:
            self.drop_oldest()
        tokens = self._pool.shrink(read.tokens, len(read.prompt))
        self._kept[key] = ReadPrompt(read.adapter, read.prompt, tokens, read.logits)
        self._num_tokens += size

    def _size(self, read: ReadPrompt) -> int:
        """Return the memory of a prompt and its logits, in tokens."""
        return len(read.prompt) + read.logits.nbytes // self._bytes_per_token

    def drop_oldest(self) -> bool:
        """Free the prompt that was not used for the longest time. Return whether there was one."""
        if not self._kept:
            return False
        self._drop(next(iter(self._kept)))
        return True

    def drop_adapters(self, attached: Iterable[str | None]) -> None:
        """Free the prompts of adapters that are no longer attached."""
        names = set(attached)
        for key in [key for key in self._kept if key[0] not in names]:
            self._drop(key)

    def _drop(self, key: tuple[str | None, tuple[int, ...]]) -> None:
        """Free a prompt."""
        read = self._kept.pop(key)
        self._num_tokens -= self._size(read)
        self._pool.free(read.tokens)


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of tokens with which two prompts begin alike."""
    limit = min(len(first), len(second))
    return next((index for index in range(limit) if first[index] != second[index]), limit)
