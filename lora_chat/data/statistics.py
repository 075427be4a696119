"""What there is to train on, in figures: the ledger of every source, and of all together."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lora_chat.data.dataset import DialogueSet
from lora_chat.data.sources import EncodedSource
from lora_chat.data.storage.ledger import sum_ledgers

_HISTOGRAM_BARS = 12


@dataclass(frozen=True)
class PackingEfficiency:
    """Share of positions that hold a token, 0 to 1, if rows are laid out so."""

    padded: float
    """Micro-batches of random rows, each row as long as the longest."""
    micro_batch_size: int
    packed: float
    """Rows one behind the other in rows of `packed_to` tokens, the longest first where they fit best."""
    packed_to: int


@dataclass(frozen=True)
class DataStatistics:
    """Everything that `lora-chat data` shows."""

    sources: tuple[dict[str, Any], ...]
    """The ledger of each, with its name and weight."""
    total: dict[str, Any]
    duplicates: int
    """Dialogues that say just what an earlier one says."""
    train_dialogues: int
    """Different ones that are trained on."""
    train_rows: int
    """Rows of an epoch, with their weights."""
    validation_dialogues: int
    histogram: tuple[tuple[int, int, int], ...]
    """Shortest and longest length in tokens, and how many rows are that long."""
    packing: PackingEfficiency

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compute_statistics(
    sources: Sequence[EncodedSource], train: DialogueSet, validation: DialogueSet, micro_batch_size: int, limit: int
) -> DataStatistics:
    """Count what was read, and what is trained and held out."""
    import numpy as np

    lengths = train.rows.lengths
    digests = np.concatenate([source.store.digests for source in sources])
    return DataStatistics(
        sources=tuple(
            {"name": source.local_source.name, "weight": source.weight} | source.store.ledger.as_dict()
            for source in sources
        ),
        total=sum_ledgers([source.store.ledger for source in sources]).as_dict(),
        duplicates=len(digests) - len(np.unique(digests)),
        train_dialogues=len(train),
        train_rows=len(train.rows),
        validation_dialogues=len(validation),
        histogram=length_histogram(lengths),
        packing=PackingEfficiency(
            padded_token_share(lengths, micro_batch_size), micro_batch_size, packed_token_share(lengths, limit), limit
        ),
    )


def length_histogram(lengths: Any) -> tuple[tuple[int, int, int], ...]:
    """Bars of one width from the shortest to the longest."""
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // _HISTOGRAM_BARS))
    edges = range(low, high + 1, width)
    return tuple((edge, min(edge + width - 1, high), _count_between(lengths, edge, edge + width)) for edge in edges)


def _count_between(lengths: Any, low: int, high: int) -> int:
    return int(((lengths >= low) & (lengths < high)).sum())


def padded_token_share(lengths: Any, size: int) -> float:
    """In batches of `size` rows in random order (seed 0)."""
    import numpy as np

    order = np.random.default_rng(0).permutation(len(lengths))
    shuffled = lengths[order]
    places = sum(int(batch.max()) * len(batch) for batch in np.split(shuffled, range(size, len(shuffled), size)))
    return float(lengths.sum()) / places


def packed_token_share(lengths: Any, limit: int) -> float:
    """Best-fit decreasing into rows of `limit` tokens; rows of one length are placed together."""
    import numpy as np

    rows, free, count = 0, [], {}  # type: int, list[int], dict[int, int]
    values, counts = np.unique(lengths, return_counts=True)
    for length, left in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            place = bisect_left(free, length)
            room = free[place] if place < len(free) else limit
            # Each row is filled up before the next one is begun; the last one may stay half filled.
            each = min(left, max(1, room // length))
            many = left // each
            if place < len(free):
                many = min(many, count[room])
                count[room] -= many
                if not count[room]:
                    free.pop(place)
            else:
                rows += many
            rest = room - each * length
            if rest not in count or not count[rest]:
                insort(free, rest)
                count[rest] = 0
            count[rest] += many
            left -= many * each
    return float(lengths.sum()) / (rows * limit)
