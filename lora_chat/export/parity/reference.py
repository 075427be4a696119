"""A small record of an adapted model's outputs: a few replies, with the most probable tokens at each position.

Training writes it into the run, and `pack` into the receipt. Who loads the adapter later scores the same tokens and
sees whether the loaded model computes the function that was trained. The prompts are built-in questions, so that the
record contains no text of the user's data except the system message, which the receipt has anyway.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from lora_chat.config.base import StrictModel
from lora_chat.data.dialogue import ChatMessage
from lora_chat.data.encoding.chat_template import render_ids
from lora_chat.errors import IntegrityError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFERENCE_QUESTIONS = (
    "Hello! Who are you, and what can you do for me?",
    "Explain in two sentences how a bicycle stays upright.",
    "What is 17 times 23? Show your steps.",
    "Write a short poem about rain.",
)
"""The prompts of a reference, which names them by their number. More may follow; none may change."""
REFERENCE_REPLY_TOKENS, REFERENCE_TOP_TOKENS = 12, 8
"""Number of tokens of each reply, and number of the most probable tokens at each position."""
_MAX_PROMPTS, _MAX_REPLY_TOKENS, _MAX_TOP_TOKENS = 16, 64, 32
_MAX_TOKEN_ID = 2**24
_MAX_SUM_ERROR = 1e-3
"""Largest excess of a sum of probabilities over 1 that rounding in 16 bits can give."""
_DECIMALS = 6
"""Decimals of a stored log-probability. Its rounding changes a KL divergence by less than 1e-5 nats."""
_LOWEST = -999.0
"""Lowest log-probability that is stored, in nats."""
_TOP_PATTERN = r"^[0-9]{1,8}:-?[0-9]{1,3}\.[0-9]{6}( [0-9]{1,8}:-?[0-9]{1,3}\.[0-9]{6}){0,31}$"

TopTokens = tuple[tuple[int, float], ...]
"""The most probable tokens of a position with their log-probabilities in nats, the highest first."""
TokenId = Annotated[int, Field(ge=0, lt=_MAX_TOKEN_ID)]


class ReferenceReply(StrictModel):
    """A greedy reply to one built-in question, and the distribution before each of its tokens."""

    question: Annotated[int, Field(ge=0, lt=len(REFERENCE_QUESTIONS))]
    """Number of the question in `REFERENCE_QUESTIONS`."""
    prompt: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the ids of the prompt, with the system message of training."""
    reply: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=_MAX_REPLY_TOKENS)]
    """Ids of the reply."""
    top: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=_TOP_PATTERN, max_length=1000)], ...],
        Field(max_length=_MAX_REPLY_TOKENS),
    ]
    """For each token of the reply the most probable tokens at its position, as `id:log-probability` in one text."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raise ValueError for impossible distributions, or if a reply lacks its own tokens in them."""
        if len(self.top) != len(self.reply):
            raise ValueError(f"{len(self.reply)} tokens, but {len(self.top)} distributions")
        for token, top in zip(self.reply, self.distributions, strict=True):
            ids, logprobs = [i for i, _ in top], [logprob for _, logprob in top]
            if len(set(ids)) != len(ids) or max(ids) >= _MAX_TOKEN_ID:
                raise ValueError("a distribution with a repeated or impossible token")
            if max(logprobs) > 0 or logprobs != sorted(logprobs, reverse=True):
                raise ValueError("log-probabilities that are positive or not sorted")
            if sum(map(math.exp, logprobs)) > 1 + _MAX_SUM_ERROR:
                raise ValueError("probabilities that sum to more than 1")
            if token not in ids:
                raise ValueError("a reply with a token that is not among the most probable ones")
        return self

    @property
    def distributions(self) -> tuple[TopTokens, ...]:
        """Return the most probable tokens at each position."""
        return tuple(parse_top(text) for text in self.top)

    @property
    def largest_id(self) -> int:
        """Return the largest token id, which must be in the vocabulary."""
        return max(*self.reply, *(token for top in self.distributions for token, _ in top))


class ModelReference(StrictModel):
    """Outputs of an adapted model, and the precision in which they were computed."""

    mode: Literal["4bit", "8bit", "none"]
    dtype: Literal["bfloat16", "float16", "float32"]
    device: Annotated[str, StringConstraints(pattern=r"^[a-z]{1,16}$")]
    """Kind of the device, such as cpu or cuda."""
    replies: Annotated[tuple[ReferenceReply, ...], Field(min_length=1, max_length=_MAX_PROMPTS)]

    @model_validator(mode="after")
    def _check_questions(self) -> Self:
        """Raise ValueError for a question that is answered twice."""
        questions = [reply.question for reply in self.replies]
        if questions != sorted(set(questions)):
            raise ValueError("questions that are repeated or not sorted")
        return self

    @property
    def positions(self) -> int:
        """Return the number of compared positions."""
        return sum(len(reply.reply) for reply in self.replies)

    @property
    def largest_id(self) -> int:
        """Return the largest token id."""
        return max(reply.largest_id for reply in self.replies)


def format_top(top: Sequence[tuple[int, float]]) -> str:
    """Format the most probable tokens of a position."""
    return " ".join(f"{token}:{max(_LOWEST, min(0.0, logprob)) or 0.0:.{_DECIMALS}f}" for token, logprob in top)


def parse_top(text: str) -> TopTokens:
    """Parse the most probable tokens of a position."""
    return tuple((int(token), float(logprob)) for token, _, logprob in (part.partition(":") for part in text.split()))


def make_reference_chat(question: int, system: str | None) -> list[ChatMessage]:
    """Return the messages before a reply of a reference."""
    head: list[ChatMessage] = [{"role": "system", "content": system}] if system is not None else []
    return [*head, {"role": "user", "content": REFERENCE_QUESTIONS[question]}]


def digest_prompt(ids: Sequence[int]) -> str:
    """Return the SHA-256 of the ids of a prompt."""
    return hashlib.sha256(",".join(map(str, ids)).encode("ascii")).hexdigest()


def render_stated_prompts(
    reference: ModelReference, tokenizer: "PreTrainedTokenizerBase", system: str | None
) -> dict[int, tuple[int, ...]]:
    """Return the ids of the prompts of a reference by the number of their question.

    Raises IntegrityError if they are not the ids of training, and DataError if the template refuses a question.
    """
    prompts = {}
    for entry in reference.replies:
        chat = make_reference_chat(entry.question, system)
        ids = tuple(render_ids(tokenizer, chat, add_generation_prompt=True))
        if digest_prompt(ids) != entry.prompt:
            raise IntegrityError(
                f"the built-in question {entry.question} has other token ids here than in training ({len(ids)} ids)"
            )
        prompts[entry.question] = ids
    return prompts
