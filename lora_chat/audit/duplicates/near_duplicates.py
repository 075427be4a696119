"""Which dialogues repeat another, exactly or nearly, and which of them stand on both sides of the split."""

import marshal
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lora_chat.audit.duplicates.minhash import ENTRIES, Pairs, candidate_pairs, shorten, sign
from lora_chat.audit.report import Kind, Split
from lora_chat.data.dialogue import Dialogue

NEAR = 0.8
"""Estimated Jaccard similarity of two dialogues, and that of what is asked in them, from which they are alike."""
NEAR_QUESTIONS = 0.75
_BATCH = 60_000  # characters


class Twin(NamedTuple):
    """A dialogue that repeats another; both by their number in order of adding, from 0."""

    kind: Kind
    dialogue: int
    other: int
    similarity: float


class TwinFinder:
    """Keeps 275 bytes for each dialogue: a digest for exact copies, two MinHash signatures for near ones."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._is_validation = array("B")
        self._signatures: list[NDArray[np.uint16]] = []
        self._questions: list[str] = []
        self._replies: list[str] = []
        self._waiting = 0

    def add(self, dialogue: Dialogue, split: Split) -> None:
        """Note one dialogue; its system message counts for exact copies only."""
        self._digests += _digest(dialogue)
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
        self._waiting += len(self._questions[-1]) + len(self._replies[-1])
        if self._waiting > _BATCH:
            self._sign()

    def find(self) -> list[Twin]:
        """One entry for each dialogue that repeats another, in order of adding."""
        if self._questions:
            self._sign()
        exact = list(self._exact())
        copies = {twin.dialogue for twin in exact}
        splits = np.frombuffer(self._is_validation, np.uint8) if self._is_validation else np.zeros(0, np.uint8)
        order = np.argsort(splits, kind="stable")  # training first
        rest = order[~np.isin(order, np.fromiter(copies, np.int64, len(copies)))]
        return sorted([*exact, *self._near(rest, splits)], key=lambda twin: (twin.dialogue, twin.kind))

    def _exact(self) -> Iterator[Twin]:
        first: dict[tuple[bytes, int], int] = {}
        digests = [bytes(self._digests[i : i + 16]) for i in range(0, len(self._digests), 16)]
        for validation in (0, 1):
            for i, digest in enumerate(digests):
                if self._is_validation[i] != validation:
                    continue
                if validation and (digest, 0) in first:
                    yield Twin("leak", i, first[digest, 0], 1.0)
                elif (digest, validation) in first:
                    yield Twin("exact_duplicate", i, first[digest, validation], 1.0)
                first.setdefault((digest, validation), i)

    def _near(self, rest: NDArray[np.int64], splits: NDArray[np.uint8]) -> Iterator[Twin]:
        if len(rest) < 2:
            return
        signatures = np.concatenate(self._signatures)[rest]
        training = int(np.count_nonzero(splits[rest] == 0))
        best = np.zeros((2, len(rest)), np.int64)  # for either kind: similarity and twin in one number
        for pairs in candidate_pairs(signatures[:, :ENTRIES], training):
            _keep_best(best, pairs, signatures, training)
        kinds: tuple[Kind, Kind] = ("near_duplicate", "near_leak")
        for across, kind in enumerate(kinds):
            for i in np.flatnonzero(best[across]):
                count, other = divmod(int(best[across, i]), 2**32)
                yield Twin(kind, int(rest[i]), int(rest[2**32 - 1 - other]), count / ENTRIES)

    def _sign(self) -> None:
        questions, replies = sign(self._questions), sign(self._replies)
        both = np.minimum(questions, replies)
        self._signatures.append(np.hstack([shorten(both), shorten(questions)]))
        self._questions, self._replies, self._waiting = [], [], 0


def _keep_best(best: NDArray[np.int64], pairs: Pairs, signatures: NDArray[np.uint16], training: int) -> None:
    """Enter into `best` [2, dialogues] the pairs that are alike; the most alike wins, then the earlier."""
    for start in range(0, len(pairs.earlier), 16384):
        earlier, later = pairs.earlier[start : start + 16384], pairs.later[start : start + 16384]
        equal = signatures[earlier] == signatures[later]
        counts = np.count_nonzero(equal[:, :ENTRIES], axis=1)
        alike = (counts >= NEAR * ENTRIES) & (np.count_nonzero(equal[:, ENTRIES:], axis=1) >= NEAR_QUESTIONS * ENTRIES)
        earlier, later, counts = earlier[alike], later[alike], counts[alike]
        across = ((earlier < training) & (later >= training)).astype(np.int64)
        np.maximum.at(best, (across, later), counts.astype(np.int64) * 2**32 + (2**32 - 1 - earlier))


def _digest(dialogue: Dialogue) -> bytes:
    """16 bytes that are equal for equal messages and tools; marshal's version 2 writes equal values alike."""
    parts: list[object] = [dialogue.tools]
    for m in dialogue.messages:
        calls = [(call.name, call.arguments, call.id) for call in m.tool_calls]
        parts.append((m.role, m.content, m.reasoning, calls, m.name, m.tool_call_id, m.trained))
    return blake2b(marshal.dumps(parts, 2), digest_size=16).digest()
