"""Digests of the questions and replies of a dialogue, and of the passages of plain text.

Case, spaces and the forms of characters (Unicode NFKC) are ignored, and so are system messages: an evaluation file may
lack them. A dialogue counts by each of its replies with the question before it, so that a turn is found in training
whatever the turns around it.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from lora_chat.data.dialogue import Dialogue, Message

PASSAGE_TOKENS = 16
"""Number of tokens in a passage of plain text."""
PASSAGE_SHIFT = 4
"""Leading zero bits of the digests of passages that are kept: one passage of 16."""
_MULTIPLIER = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class ReplyDigests:
    """Digests of 64 bits of a reply that is trained or scored."""

    turn: int
    """Digest of the question and the reply together."""
    question: int | None
    """Digest of the messages before the reply; None if none exist."""
    reply: int


def list_reply_digests(dialogue: Dialogue) -> list[ReplyDigests]:
    """Return the digests of each reply with loss."""
    digests: list[ReplyDigests] = []
    question: list[str] = []
    for message in dialogue.messages:
        if message.role == "assistant":
            if message.trained:
                asked, said = normalize_text("\n".join(question)), normalize_text(read_reply(message))
                turn = digest_text(f"{asked}\0{said}")
                digests.append(ReplyDigests(turn, digest_text(asked) if asked else None, digest_text(said)))
            question = []
        elif message.role != "system":
            question.append(message.content)
    return digests


def list_user_digests(dialogue: Dialogue) -> Iterator[int]:
    """Yield the digest of each message of the user."""
    for message in dialogue.messages:
        if message.role == "user" and (text := normalize_text(message.content)):
            yield digest_text(text)


def read_texts(dialogue: Dialogue) -> tuple[str, str]:
    """Return the text of all questions and the text of all replies, for the comparison of words."""
    questions, replies = [], []
    for message in dialogue.messages:
        if message.role == "assistant":
            replies.append(read_reply(message))
        elif message.role != "system":
            questions.append(message.content)
    return "\n".join(questions), "\n".join(replies)


def read_reply(message: Message) -> str:
    """Return the reasoning, the text and the tool calls of a reply."""
    calls = (f"{call.name} {call.arguments}" for call in message.tool_calls)
    return "\n".join([*([message.reasoning] if message.reasoning else []), message.content, *calls])


def normalize_text(text: str) -> str:
    """Return a text without differences of case, of spaces and of the form of characters."""
    text = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split())


def digest_text(text: str) -> int:
    """Return the digest of a text that is already normalized."""
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def digest_block(ids: Sequence[int]) -> int:
    """Return the digest of a block of plain text, which no text of a dialogue has."""
    content = b"block\0" + np.asarray(ids, "<u4").tobytes()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big")


def list_passage_digests(ids: Sequence[int]) -> NDArray[np.uint64]:
    """Return the digests of some passages of a block, wherever the block begins in its text, shape [passages]."""
    tokens = np.asarray(ids, np.uint64)
    if len(tokens) < PASSAGE_TOKENS:
        return np.zeros(0, np.uint64)
    with np.errstate(over="ignore"):
        digests = np.zeros(len(tokens) - PASSAGE_TOKENS + 1, np.uint64)
        for offset in range(PASSAGE_TOKENS):  # a polynomial modulo 2**64
            window = tokens[offset : offset + len(digests)] + np.uint64(1)
            digests = digests * np.uint64(_MULTIPLIER) + window
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64
            digests = (digests ^ (digests >> np.uint64(shift))) * np.uint64(factor)
        digests = digests ^ (digests >> np.uint64(31))
    sampled: NDArray[np.uint64] = np.unique(digests[digests >> np.uint64(64 - PASSAGE_SHIFT) == 0])
    return sampled
