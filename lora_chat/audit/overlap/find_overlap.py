"""How each dialogue of an evaluation was seen in training."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lora_chat.audit.duplicates.near_duplicates import MIN_QUESTION_SIMILARITY, MIN_SIMILARITY
from lora_chat.audit.overlap.digest_set import DigestSet
from lora_chat.audit.overlap.item_digests import (
    ReplyDigests,
    digest_block,
    digest_text,
    list_passage_digests,
    list_reply_digests,
    normalize_text,
)
from lora_chat.audit.overlap.training_digests import (
    QUESTION_ENTRIES,
    TEXT_ENTRIES,
    Signer,
    TrainingDigests,
)
from lora_chat.data.dialogue import Dialogue

OverlapKind = Literal["exact", "near", "reply", "question"]
"""How a dialogue was seen: all its turns, nearly the same words, only its replies, or only its questions."""

_BAND_ENTRIES = 4
_MAX_CANDIDATES = 64
"""Maximum number of training dialogues with the same band that a dialogue is compared with."""
_MIN_PASSAGES = 2
_MIN_PASSAGE_SHARE = 0.5
"""Minimum share of the passages of a block that occur in training, for a block that was nearly seen."""


class EvaluatedItem(NamedTuple):
    """A dialogue or a block of plain text of an evaluation."""

    dialogue: Dialogue | None
    ids: Sequence[int]
    """Token ids of a block of plain text; unused for a dialogue."""


def find_overlap(digests: TrainingDigests, items: Iterable[EvaluatedItem]) -> list[OverlapKind | None]:
    """Return how each item was seen in training, in the order of the items; None for an unseen item.

    Of training data that is too large the digests are a sample: items without digests in the sample count as unseen.
    """
    kinds: list[OverlapKind | None] = []
    signer, signed = Signer(), []
    for number, item in enumerate(items):
        if item.dialogue is None:
            kinds.append(_compare_block(digests, item.ids))
            continue
        replies = list_reply_digests(item.dialogue)
        kind = _compare_replies(digests, replies)
        kinds.append(kind)
        if replies and kind != "exact":
            signer.add(item.dialogue)
            signed.append(number)
    for number in _find_near(digests.signatures, signer.collect()):
        kinds[signed[number]] = "near"
    return kinds


def find_seen_questions(digests: TrainingDigests, questions: Sequence[str]) -> list[bool]:
    """Return which questions are messages of the user in training."""
    return [
        bool(seen)
        for seen in digests.questions.contains(_as_array([digest_text(normalize_text(q)) for q in questions]))
    ]


def _compare_replies(digests: TrainingDigests, replies: Sequence[ReplyDigests]) -> OverlapKind | None:
    """Return how the replies of a dialogue were seen, without the comparison of words."""
    if not replies:
        return None
    if _are_seen(digests.turns, [reply.turn for reply in replies]):
        return "exact"
    questions = [reply.question for reply in replies if reply.question is not None]
    if questions and _are_seen(digests.questions, questions):
        return "question"
    return "reply" if _are_seen(digests.replies, [reply.reply for reply in replies]) else None


def _are_seen(known: DigestSet, values: Sequence[int]) -> bool:
    """Return whether a set contains all values that it covers, and covers at least one."""
    array = _as_array(values)
    covered = array[known.covers(array)]
    return len(covered) > 0 and bool(known.contains(covered).all())


def _compare_block(digests: TrainingDigests, ids: Sequence[int]) -> OverlapKind | None:
    """Return how a block of plain text was seen."""
    if _are_seen(digests.turns, [digest_block(ids)]):
        return "exact"
    passages = list_passage_digests(ids)
    passages = passages[digests.passages.covers(passages)]
    seen = int(digests.passages.contains(passages).sum())
    return "near" if seen >= max(_MIN_PASSAGES, _MIN_PASSAGE_SHARE * len(passages)) else None


def _find_near(training: NDArray[np.uint8], evaluated: NDArray[np.uint8]) -> set[int]:
    """Return the rows of `evaluated` that are similar to a row of `training`."""
    similar_rows: set[int] = set()
    for earlier, later in _find_candidates(training, evaluated):
        equal = training[earlier] == evaluated[later]
        similar = (np.count_nonzero(equal[:, :TEXT_ENTRIES], axis=1) >= MIN_SIMILARITY * TEXT_ENTRIES) & (
            np.count_nonzero(equal[:, TEXT_ENTRIES:], axis=1) >= MIN_QUESTION_SIMILARITY * QUESTION_ENTRIES
        )
        similar_rows.update(later[similar].tolist())
    return similar_rows


def _find_candidates(
    training: NDArray[np.uint8], evaluated: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the rows of both arrays that agree in a band of four entries, band by band, with few for each key."""
    for start in range(0, TEXT_ENTRIES, _BAND_ENTRIES):
        keys, wanted = (_read_band(rows, start) for rows in (training, evaluated))
        unique, group = np.unique(wanted, return_inverse=True)
        if not len(unique) or not len(keys):
            return
        places = np.minimum(np.searchsorted(unique, keys), len(unique) - 1)
        rows = np.flatnonzero(unique[places] == keys)
        rows = rows[np.argsort(places[rows], kind="stable")]  # grouped by their keys
        begins = np.searchsorted(places[rows], np.arange(len(unique) + 1))
        for step in range(_MAX_CANDIDATES):
            at = begins[group] + step
            later = np.flatnonzero(at < begins[group + 1])
            if not len(later):
                break
            yield rows[at[later]], later


def _read_band(signatures: NDArray[np.uint8], start: int) -> NDArray[np.uint32]:
    """Return the four entries of each signature from `start` on as one number, shape [dialogues]."""
    band = np.ascontiguousarray(signatures[:, start : start + _BAND_ENTRIES])
    return band.view(np.uint32).reshape(-1)


def _as_array(values: Sequence[int]) -> NDArray[np.uint64]:
    """Return digests as an array, shape [digests]."""
    return np.array(values, np.uint64)
