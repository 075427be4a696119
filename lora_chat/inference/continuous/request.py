"""What a request to a model in memory asks for, and what it receives."""

from dataclasses import dataclass
from typing import Literal

from lora_chat.config.generation_section import GREEDY, GenerationSection

FinishReason = Literal["stop", "length", "cancelled", "deadline", "removed", "failed"]
"""Why a reply ended: a stop token, the largest number of tokens, a cancelled request, its deadline, an adapter that was
removed, or an error."""


class QueueFullError(Exception):
    """Too many requests are waiting; a later one can be answered."""


class RequestTooLongError(Exception):
    """A prompt with its longest reply that never fits the context window or the memory for keys and values."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt and how to continue it."""

    prompt: tuple[int, ...]
    adapter: str | None
    """Name of an attached adapter; None for the bare base."""
    stop_ids: frozenset[int]
    max_new_tokens: int
    generation: GenerationSection = GREEDY
    number: int = 0
    """Number of the reply; with the seed it decides the random numbers, as in `generate_ids`."""
    top_logprobs: int | None = None
    """Number of alternatives of each token whose log-probabilities are returned."""
    deadline: float | None = None
    """Time of `time.monotonic` at which the reply ends, in seconds."""


@dataclass(frozen=True)
class GeneratedToken:
    """The next token of a reply. Log-probabilities are natural logarithms, before temperature and nucleus."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens with their log-probabilities, the highest first."""


@dataclass(frozen=True)
class Finish:
    """The end of a reply, which every request receives once."""

    reason: FinishReason
    message: str = ""
    """What failed, for the log."""


@dataclass(frozen=True)
class BatchLimits:
    """Largest numbers of requests and tokens."""

    max_running: int = 16
    """Requests that are answered together."""
    max_waiting: int = 64
    """Requests that wait for a free place."""
    max_cache_tokens: int | None = None
    """Tokens whose keys and values fit into memory; None derives it from free memory."""
    positions: int | None = None
    """Context window of the base in tokens; None if unknown."""
    exact_prefixes: bool = True
    """Whether prompts share keys and values only where a reply keeps its bits. Equal prompts always share them."""
    max_read_tokens: int = 512
    """Prompt tokens after which the running replies get their next tokens before another prompt is read."""


@dataclass(frozen=True)
class BatchStatistics:
    """Numbers since the start, and of this moment."""

    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    """Tokens of all prompts."""
    reused_tokens: int = 0
    """Tokens of prompts whose keys and values were there already."""
    generated_tokens: int = 0
    cache_tokens: int = 0
    """Tokens whose keys and values are in memory now."""
    prefix_hits: int = 0
    """Prompts of which at least a part was there already."""
    finished: int = 0
    """Replies that ended, for whatever reason."""
    steps: int = 0
    """Steps that computed the next tokens of all running requests."""
    cache_capacity: int = 0
    """Tokens whose keys and values fit into memory; 0 if requests do not share steps."""
    single_reason: str = ""
    """Why requests are answered one after another; empty if they share steps."""
    is_exact: bool = True
    """Whether a reply has the same bits beside other requests; otherwise nearly equal tokens may change places."""
