"""Replies that teach nothing: empty ones, ones that go round in circles, and one reply to everything."""

import re
import zlib
from typing import NamedTuple

from lora_chat.audit.checks.heavy_hitters import FrequentItems

_IGNORED_EDGE_CHARACTERS = " \t\r\n.…·•*_=~#>!?,;:–—-[]<>(){}\"'"
_PLACEHOLDERS = frozenset({"n/a", "na", "todo", "tbd", "fixme", "placeholder", "no response", "no reply", "no answer"})
_BRACKETED_PLACEHOLDER = re.compile(
    r"(?:(?:your|the|insert|assistant'?s?) )*(?:response|reply|answer|output|text|content|empty|blank)"
    r"(?: (?:goes )?here)?"
)
_NULL_WORDS = frozenset({"null", "NULL", "None", "nan", "NaN", "undefined"})
"""What programs write for a value that is not there; `None.` and `none` may be answers."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_NGRAM_WORDS = 4
_MAX_REPEATED_SHARE = 0.7
"""Largest share of 4-word sequences that may have stood in the reply before; songs and tables stay below."""


def is_empty(reply: str) -> bool:
    """Whether a reply is only punctuation, or a word that stands for a reply that is missing."""
    core = reply.strip(_IGNORED_EDGE_CHARACTERS)
    if len(core) > 40:
        return core.startswith(("Lorem ipsum", "lorem ipsum")) and len(core) < 700
    if not core or reply.strip() in _NULL_WORDS or core.lower() in _PLACEHOLDERS:
        return True
    return reply.lstrip()[0] in "[<({" and _BRACKETED_PLACEHOLDER.fullmatch(core.lower()) is not None


def is_repetitive(reply: str) -> bool:
    """Whether most 4-word sequences of a reply stood in it before (Rae et al. 2021, appendix A.1.1)."""
    if len(reply) < 120:
        return False
    reply = reply[:20_000]
    samples = (reply[at : at + 12] for at in range(len(reply) // 10, len(reply) - 12, len(reply) // 6))
    if all(reply.count(sample) < 3 for sample in samples):  # cheap, and true of nearly all text
        return False
    words = _WORD.findall(reply.lower())
    grams = [tuple(words[i : i + _NGRAM_WORDS]) for i in range(len(words) - _NGRAM_WORDS + 1)]
    return len(grams) >= 20 and 1 - len(set(grams)) / len(grams) > _MAX_REPEATED_SHARE


class RepeatedReply(NamedTuple):
    """A reply that many dialogues share."""

    location: tuple[str, int, int]
    """File, line and message of the first."""
    text: str
    """How it begins; not masked."""
    occurrences: int
    share: float


class ReplyCounter:
    """Counts equal replies in memory that does not grow with the data."""

    def __init__(self, share: float = 0.05, min_count: int = 20) -> None:
        """A reply counts as repeated above both `share` of all replies and `min_count` times."""
        self._share, self._at_least = share, min_count
        self._frequent: FrequentItems[tuple[tuple[str, int, int], str]] = FrequentItems(capacity=20 * round(1 / share))
        self._replies = 0

    def add(self, reply: str, location: tuple[str, int, int]) -> None:
        """Count a reply; short ones, such as confirmations, only among all."""
        self._replies += 1
        text = reply.strip()
        if len(text) >= 20 or (not text.isascii() and len(text) >= 10):
            self._frequent.add(zlib.crc32(text.encode("utf-8", "replace")) | len(text) << 32, (location, text[:200]))

    def find_repeated(self) -> list[RepeatedReply]:
        """The replies given too often, the most frequent first."""
        least = max(self._at_least, self._share * self._replies)
        return [
            RepeatedReply(place, text, count, count / self._replies)
            for (place, text), count in self._frequent.most_common()
            if count >= least
        ]
