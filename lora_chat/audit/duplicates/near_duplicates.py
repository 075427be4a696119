"""Which dialogues repeat another, exactly or nearly, and which of them stand on both sides of the split."""

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
from lora_chat.audit.report import Split
from lora_chat.config.audit import FindingKind
from lora_chat.data.dialogue import Dialogue

MIN_SIMILARITY = 0.8
"""Estimated Jaccard similarity of two dialogues, and that of what is asked in them, from which they are alike."""
MIN_QUESTION_SIMILARITY = 0.75
_BATCH_CHARACTERS = 60_000  # characters


class DuplicateMatch(NamedTuple):
    """A dialogue that repeats another; both by their number in order of adding, from 0."""

    kind: FindingKind
    dialogue: int
    other: int
    similarity: float


class DuplicateFinder:
    """Keeps 275 bytes for each dialogue: a digest for exact copies, two MinHash signatures for near ones."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._is_validation = array("B")
        self._signatures: list[NDArray[np.uint16]] = []
        self._questions: list[str] = []
        self._replies: list[str] = []
        self._pending_characters = 0

    def add(self, dialogue: Dialogue, split: Split) -> None:
        """Note one dialogue; its system message counts for exact copies only."""
        self._digests += _digest_dialogue(dialogue)
        self._is_validation.append(split == "validation")
        question, reply = [], []
        for message in dialogue.messages:
            if message.role == "assistant":
                reply += [
                    message.reasoning or "",
                    message.content,
                    *(f"{c.name} {c.arguments}" for c in message.tool_calls),
                ]
            elif message.role != "system":
                question.append(message.content)
        self._questions.append("\n".join(question))
        self._replies.append("\n".join(reply))
        self._pending_characters += len(self._questions[-1]) + len(self._replies[-1])
        if self._pending_characters > _BATCH_CHARACTERS:
            self._compute_signatures()

    def find(self) -> list[DuplicateMatch]:
        """One entry for each dialogue that repeats another, in order of adding."""
        if self._questions:
            self._compute_signatures()
        exact = list(self._find_exact())
        copies = {twin.dialogue for twin in exact}
        splits = np.frombuffer(self._is_validation, np.uint8) if self._is_validation else np.zeros(0, np.uint8)
        order = np.argsort(splits, kind="stable")  # training first
        rest = order[~np.isin(order, np.fromiter(copies, np.int64, len(copies)))]
        return sorted([*exact, *self._find_near(rest, splits)], key=lambda twin: (twin.dialogue, twin.kind))

    def _find_exact(self) -> Iterator[DuplicateMatch]:
        first: dict[tuple[bytes, int], int] = {}
        digests = [bytes(self._digests[i : i + 16]) for i in range(0, len(self._digests), 16)]
        for validation in (0, 1):
            for i, digest in enumerate(digests):
                if self._is_validation[i] != validation:
                    continue
                if validation and (digest, 0) in first:
                    yield DuplicateMatch("leak", i, first[digest, 0], 1.0)
                elif (digest, validation) in first:
                    yield DuplicateMatch("exact_duplicate", i, first[digest, validation], 1.0)
                first.setdefault((digest, validation), i)

    def _find_near(self, rest: NDArray[np.int64], splits: NDArray[np.uint8]) -> Iterator[DuplicateMatch]:
        if len(rest) < 2:
            return
        signatures = np.concatenate(self._signatures)[rest]
        training = int(np.count_nonzero(splits[rest] == 0))
        best = np.zeros((2, len(rest)), np.int64)  # for either kind: similarity and twin in one number
        for pairs in find_candidate_pairs(signatures[:, :SIGNATURE_ENTRIES], training):
            _keep_best(best, pairs, signatures, training)
        kinds: tuple[FindingKind, FindingKind] = ("near_duplicate", "near_leak")
        for across, kind in enumerate(kinds):
            for i in np.flatnonzero(best[across]):
                count, other = divmod(int(best[across, i]), 2**32)
                yield DuplicateMatch(kind, int(rest[i]), int(rest[2**32 - 1 - other]), count / SIGNATURE_ENTRIES)

    def _compute_signatures(self) -> None:
        questions, replies = compute_signatures(self._questions), compute_signatures(self._replies)
        both = np.minimum(questions, replies)
        self._signatures.append(np.hstack([truncate_signatures(both), truncate_signatures(questions)]))
        self._questions, self._replies, self._pending_characters = [], [], 0


def _keep_best(
    best: NDArray[np.int64], pairs: CandidatePairs, signatures: NDArray[np.uint16], training_count: int
) -> None:
    """Enter into `best` [2, dialogues] the pairs that are alike; the most alike wins, then the earlier."""
    for start in range(0, len(pairs.earlier), 16384):
        earlier, later = pairs.earlier[start : start + 16384], pairs.later[start : start + 16384]
        equal = signatures[earlier] == signatures[later]
        counts = np.count_nonzero(equal[:, :SIGNATURE_ENTRIES], axis=1)
        alike = (counts >= MIN_SIMILARITY * SIGNATURE_ENTRIES) & (
            np.count_nonzero(equal[:, SIGNATURE_ENTRIES:], axis=1) >= MIN_QUESTION_SIMILARITY * SIGNATURE_ENTRIES
        )
        earlier, later, counts = earlier[alike], later[alike], counts[alike]
        across = ((earlier < training_count) & (later >= training_count)).astype(np.int64)
        np.maximum.at(best, (across, later), counts.astype(np.int64) * 2**32 + (2**32 - 1 - earlier))


def _digest_dialogue(dialogue: Dialogue) -> bytes:
    """16 bytes that are equal for equal messages and tools; marshal's version 2 writes equal values alike."""
    parts: list[object] = [dialogue.tools]
    for m in dialogue.messages:
        calls = [(call.name, call.arguments, call.id) for call in m.tool_calls]
        parts.append((m.role, m.content, m.reasoning, calls, m.name, m.tool_call_id, m.trained))
    return blake2b(marshal.dumps(parts, 2), digest_size=16).digest()
