"""Replies without training value: placeholders, replies that repeat themselves, and one reply to many questions."""

import re
import zlib
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from pydantic import TypeAdapter

from lora_chat.audit.checks.heavy_hitters import FrequentItems
from lora_chat.audit.data_files import load_data_file
from lora_chat.audit.report import TextMatch
from lora_chat.config.base import NonEmptyStr, StrictModel
from lora_chat.data.dialogue import Dialogue, Message

_IGNORED_EDGE_CHARACTERS = " \t\r\n.…·•*_=~#>!?,;:–—-[]<>(){}\"'"
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_NGRAM_WORDS = 4
_MAX_REPEATED_SHARE = 0.7
"""Maximum share of 4-word sequences that repeat an earlier one. Songs and tables are below it."""


class _PlaceholderReplies(StrictModel):
    """The content of `placeholder_replies.json`."""

    phrases: tuple[NonEmptyStr, ...]
    """Phrases in lower case, compared without case and punctuation."""
    null_words: tuple[NonEmptyStr, ...]
    """Missing values as programs print them, compared exactly, because `None.` and `none` may be answers."""
    bracketed_pattern: NonEmptyStr
    """Pattern of placeholders that are always in brackets."""


@cache
def _load_placeholders() -> tuple[frozenset[str], frozenset[str], re.Pattern[str]]:
    content = load_data_file("checks", "placeholder_replies.json", TypeAdapter(_PlaceholderReplies))
    return frozenset(content.phrases), frozenset(content.null_words), re.compile(content.bracketed_pattern)


def iter_trained_replies(dialogue: Dialogue) -> Iterator[tuple[int, Message]]:
    """Yield the trained replies that are not empty strings, each with the number of its message, counted from 1."""
    for number, message in enumerate(dialogue.messages, 1):
        if message.role == "assistant" and message.trained and message.content:
            yield number, message


def find_empty_reply(message: Message) -> TextMatch | None:
    """Return a match if a reply has neither content nor tool calls."""
    if message.tool_calls or not is_empty(message.content):
        return None
    return TextMatch("empty_reply", "no content", 0, len(message.content))


def find_repetitive_reply(message: Message) -> TextMatch | None:
    """Return a match of the beginning of a reply that repeats itself."""
    return TextMatch("repetitive_reply", "repeats itself", 0, 40) if is_repetitive(message.content) else None


def is_empty(reply: str) -> bool:
    """Return whether a reply contains only punctuation or a placeholder for a missing reply."""
    core = reply.strip(_IGNORED_EDGE_CHARACTERS)
    if len(core) > 40:
        return core.startswith(("Lorem ipsum", "lorem ipsum")) and len(core) < 700
    phrases, null_words, bracketed_pattern = _load_placeholders()
    if not core or reply.strip() in null_words or core.lower() in phrases:
        return True
    return reply.lstrip()[0] in "[<({" and bracketed_pattern.fullmatch(core.lower()) is not None


def is_repetitive(reply: str) -> bool:
    """Return whether most 4-word sequences of a reply repeat an earlier one (Rae et al. 2021, appendix A.1.1)."""
    if len(reply) < 120:
        return False
    reply = reply[:20_000]
    samples = (reply[at : at + 12] for at in range(len(reply) // 10, len(reply) - 12, len(reply) // 6))
    if all(reply.count(sample) < 3 for sample in samples):  # a cheap test that nearly all text passes
        return False
    tokens = _WORD.findall(reply.lower())
    ngrams = [tuple(tokens[i : i + _NGRAM_WORDS]) for i in range(len(tokens) - _NGRAM_WORDS + 1)]
    return len(ngrams) >= 20 and 1 - len(set(ngrams)) / len(ngrams) > _MAX_REPEATED_SHARE


class RepeatedReply(NamedTuple):
    """A reply that many dialogues share."""

    location: tuple[str, int, int]
    """File, line and message of the first occurrence."""
    text: str
    """The beginning of the reply, not masked."""
    occurrences: int
    share: float
    """Share of all replies."""


class ReplyCounter:
    """A counter of equal replies whose memory does not grow with the data."""

    def __init__(self, share: float = 0.05, min_count: int = 20) -> None:
        """Report a reply that makes up at least `share` of all replies and occurs at least `min_count` times."""
        self._share, self._min_count = share, min_count
        self._frequent: FrequentItems[tuple[tuple[str, int, int], str]] = FrequentItems(capacity=20 * round(1 / share))
        self._replies = 0

    def add(self, reply: str, location: tuple[str, int, int]) -> None:
        """Count a reply. Short replies, such as confirmations, count only in the total."""
        self._replies += 1
        text = reply.strip()
        if len(text) >= 20 or (not text.isascii() and len(text) >= 10):
            self._frequent.add(zlib.crc32(text.encode("utf-8", "replace")) | len(text) << 32, (location, text[:200]))

    def find_repeated(self) -> list[RepeatedReply]:
        """Return the replies that occur too often, the most frequent first."""
        min_count = max(self._min_count, self._share * self._replies)
        return [
            RepeatedReply(location, text, count, count / self._replies)
            for (location, text), count in self._frequent.most_common()
            if count >= min_count
        ]
