"""Dialogues that repeat another one, exactly or nearly, within a split or across both."""

import marshal
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lora_chat.audit.duplicates.minhash import (
    SIGNATURE_ENTRIES,
    CandidatePairs,
    compute_signatures,
    find_candidate_pairs,
    truncate_signatures,
)
from lora_chat.audit.report import SPLITS, Split
from lora_chat.config.audit import FindingKind
from lora_chat.data.dialogue import Dialogue

MIN_SIMILARITY = 0.8
"""Minimum estimated Jaccard similarity of two near duplicates."""
MIN_QUESTION_SIMILARITY = 0.75
"""Minimum estimated Jaccard similarity of the questions in two near duplicates."""
_BATCH_CHARACTERS = 60_000
"""Characters of dialogues whose signatures are computed together."""


class DuplicateMatch(NamedTuple):
    """A dialogue that repeats another; both are numbers in the order of adding, from 0."""

    kind: FindingKind
    dialogue: int
    other: int
    similarity: float


class DuplicateFinder:
    """A search for repeated dialogues that keeps 275 bytes per dialogue.

    These are a digest for exact duplicates and two MinHash signatures for near duplicates.
    """

    def __init__(self) -> None:
        self._digests = bytearray()
        self._splits = array("B")
        self._signatures: list[NDArray[np.uint16]] = []
        self._questions: list[str] = []
        self._replies: list[str] = []
        self._pending_characters = 0

    def add(self, dialogue: Dialogue, split: Split) -> None:
        """Add one dialogue. Its system message is only compared for exact duplicates."""
        self._digests += _digest_dialogue(dialogue)
        self._splits.append(SPLITS.index(split))
        questions, replies = [], []
        for message in dialogue.messages:
            if message.role == "assistant":
                replies += [
                    message.reasoning or "",
                    message.content,
                    *(f"{c.name} {c.arguments}" for c in message.tool_calls),
                ]
            elif message.role != "system":
                questions.append(message.content)
        self._questions.append("\n".join(questions))
        self._replies.append("\n".join(replies))
        self._pending_characters += len(self._questions[-1]) + len(self._replies[-1])
        if self._pending_characters > _BATCH_CHARACTERS:
            self._compute_signatures()

    def find(self) -> list[DuplicateMatch]:
        """Return one match for each dialogue that repeats another, in the order of adding."""
        if self._questions:
            self._compute_signatures()
        exact = list(self._find_exact())
        copies = {match.dialogue for match in exact}
        splits = np.frombuffer(self._splits, np.uint8) if self._splits else np.zeros(0, np.uint8)
        # Sorted by split, training dialogues first. Exact duplicates are not compared again.
        order = np.argsort(splits, kind="stable")
        rest = order[~np.isin(order, np.fromiter(copies, np.int64, len(copies)))]
        return sorted([*exact, *self._find_near(rest, splits)], key=lambda match: (match.dialogue, match.kind))

    def _find_exact(self) -> Iterator[DuplicateMatch]:
        """Yield the dialogues that are equal to an earlier one of their split, or to one of an earlier split."""
        digests = [bytes(self._digests[i : i + 16]) for i in range(0, len(self._digests), 16)]
        earlier: dict[bytes, int] = {}
        for split in range(len(SPLITS)):
            first: dict[bytes, int] = {}
            for i, digest in enumerate(digests):
                if self._splits[i] != split:
                    continue
                if digest in earlier:
                    yield DuplicateMatch("leak", i, earlier[digest], 1.0)
                elif digest in first:
                    yield DuplicateMatch("exact_duplicate", i, first[digest], 1.0)
                first.setdefault(digest, i)
            earlier = first | earlier

    def _find_near(self, rest: NDArray[np.int64], splits: NDArray[np.uint8]) -> Iterator[DuplicateMatch]:
        """Yield the best near match of each dialogue in `rest`, within its split and across both."""
        if len(rest) < 2:
            return
        signatures = np.concatenate(self._signatures)[rest]
        sizes = np.bincount(splits[rest], minlength=len(SPLITS))
        borders = [int(border) for border in np.cumsum(sizes)[:-1] if border < len(rest)]
        # One number per dialogue and kind: the similarity in the high bits, the other dialogue in the low bits.
        best = np.zeros((2, len(rest)), np.int64)
        for pairs in find_candidate_pairs(signatures[:, :SIGNATURE_ENTRIES], borders):
            _update_best(best, pairs, signatures, splits[rest])
        kinds: tuple[FindingKind, FindingKind] = ("near_duplicate", "near_leak")
        for across, kind in enumerate(kinds):
            for i in np.flatnonzero(best[across]):
                count, other = divmod(int(best[across, i]), 2**32)
                yield DuplicateMatch(kind, int(rest[i]), int(rest[2**32 - 1 - other]), count / SIGNATURE_ENTRIES)

    def _compute_signatures(self) -> None:
        """Compute the signatures of the pending dialogues, and forget their texts."""
        questions, replies = compute_signatures(self._questions), compute_signatures(self._replies)
        both = np.minimum(questions, replies)  # the signature of both texts together
        self._signatures.append(np.hstack([truncate_signatures(both), truncate_signatures(questions)]))
        self._questions, self._replies, self._pending_characters = [], [], 0


def _update_best(
    best: NDArray[np.int64], pairs: CandidatePairs, signatures: NDArray[np.uint16], splits: NDArray[np.uint8]
) -> None:
    """Enter the similar pairs into `best`, shape [2, dialogues]. The most similar pair wins, then the earlier one."""
    for start in range(0, len(pairs[0]), 16384):
        earlier, later = (rows[start : start + 16384] for rows in pairs)
        # Count the equal entries of both signatures: of the whole dialogues, and of their questions.
        equal = signatures[earlier] == signatures[later]
        counts = np.count_nonzero(equal[:, :SIGNATURE_ENTRIES], axis=1)
        similar = (counts >= MIN_SIMILARITY * SIGNATURE_ENTRIES) & (
            np.count_nonzero(equal[:, SIGNATURE_ENTRIES:], axis=1) >= MIN_QUESTION_SIMILARITY * SIGNATURE_ENTRIES
        )
        earlier, later, counts = earlier[similar], later[similar], counts[similar]
        # Near duplicates are in one split; near leaks are in two.
        across = (splits[earlier] != splits[later]).astype(np.int64)
        np.maximum.at(best, (across, later), counts.astype(np.int64) * 2**32 + (2**32 - 1 - earlier))


def _digest_dialogue(dialogue: Dialogue) -> bytes:
    """Return a digest of 16 bytes, equal for equal messages and tools.

    Version 2 of marshal is used because it writes equal values as equal bytes.
    """
    parts: list[object] = [dialogue.tools]
    for m in dialogue.messages:
        tool_calls = [(call.name, call.arguments, call.id) for call in m.tool_calls]
        parts.append((m.role, m.content, m.reasoning, tool_calls, m.name, m.tool_call_id, m.trained))
    return blake2b(marshal.dumps(parts, 2), digest_size=16).digest()
