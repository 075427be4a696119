"""Statistics of the training data: the ledger of each source and of all together, lengths and packing."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lora_chat.config.audit import FindingKind
from lora_chat.data.dataset import DialogueSet
from lora_chat.data.sources import EncodedSource
from lora_chat.data.storage.ledger import Ledger, sum_ledgers

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, Any]

_HISTOGRAM_BARS = 12


@dataclass(frozen=True)
class PackingEfficiency:
    """Share of positions with a token, from 0 to 1, for two layouts of rows."""

    padded: float
    """Token share of micro-batches of random rows, padded to the longest row of each."""
    micro_batch_size: int
    packed: float
    """Token share of rows that are packed into `packed_to` tokens by best-fit decreasing."""
    packed_to: int


@dataclass(frozen=True)
class SourceStatistics:
    """The counts of a source."""

    name: str
    weight: float
    ledger: Ledger
    file_notes: tuple[str, ...] = ()
    """Sentences on files and splits that are not used."""
    limit: int | None = None
    """Number of first rows that were read; None for all."""

    def as_dict(self) -> dict[str, object]:
        """Return the name, the weight and the counts of the ledger as JSON data."""
        return {
            "name": self.name,
            "weight": self.weight,
            "limit": self.limit,
            "file_notes": list(self.file_notes),
            **self.ledger.as_dict(),
        }


@dataclass(frozen=True)
class DataStatistics:
    """The statistics that `lora-chat data` shows."""

    sources: tuple[SourceStatistics, ...]
    total: Ledger
    """Sum of the ledgers of all sources."""
    duplicates: int
    """Number of dialogues that are equal to an earlier one."""
    train_dialogues: int
    """Number of different training dialogues."""
    train_rows: int
    """Number of rows in an epoch, repeated or sampled by weight."""
    validation_dialogues: int
    histogram: tuple[tuple[int, int, int], ...]
    """Bars of shortest length, longest length (in tokens) and number of rows."""
    packing: PackingEfficiency
    left_out: dict[FindingKind, int] = field(default_factory=dict)
    """Number of dialogues that the audit leaves out, by the kind of their findings."""
    test_dialogues: int = 0
    thinking: str | None = None
    """Sentence about the thoughts of replies and how they are trained, or None."""

    def after_audit(
        self, train: DialogueSet, validation: DialogueSet, test: DialogueSet, left_out: dict[FindingKind, int]
    ) -> "DataStatistics":
        """Return the statistics of the sets without the dialogues that the audit leaves out."""
        lengths, packing = train.rows.lengths, self.packing
        return replace(
            self,
            train_dialogues=len(train),
            train_rows=len(train.rows),
            validation_dialogues=len(validation),
            test_dialogues=len(test),
            histogram=length_histogram(lengths),
            packing=measure_packing(lengths, packing.micro_batch_size, packing.packed_to),
            left_out=left_out,
        )

    def as_dict(self) -> dict[str, object]:
        """Return the statistics as JSON data."""
        return asdict(self) | {"sources": [source.as_dict() for source in self.sources]}


def compute_statistics(
    sources: Sequence[EncodedSource],
    train: DialogueSet,
    validation: DialogueSet,
    test: DialogueSet,
    micro_batch_size: int,
    limit: int,
) -> DataStatistics:
    """Compute the statistics of sources and of the sets built from them; `limit` is the longest row in tokens."""
    import numpy as np

    lengths = train.rows.lengths
    digests = np.concatenate([source.store.digests for source in sources])
    return DataStatistics(
        sources=tuple(
            SourceStatistics(
                source.local_source.name,
                source.weight,
                source.store.ledger,
                source.local_source.notes,
                source.local_source.section.limit,
            )
            for source in sources
        ),
        total=sum_ledgers([source.store.ledger for source in sources]),
        duplicates=count_repeated(digests),
        train_dialogues=len(train),
        train_rows=len(train.rows),
        validation_dialogues=len(validation),
        test_dialogues=len(test),
        histogram=length_histogram(lengths),
        packing=measure_packing(lengths, micro_batch_size, limit),
    )


def count_repeated(digests: "Numbers") -> int:
    """Return how many digests have occurred before. Sorting millions of them takes less time than `np.unique`."""
    import numpy as np

    ordered = np.sort(digests)
    return int((ordered[1:] == ordered[:-1]).sum())


def measure_packing(lengths: "Numbers", micro_batch_size: int, limit: int) -> PackingEfficiency:
    """Return the share of tokens in padded micro-batches, and in rows that are packed up to the limit."""
    padded, packed = padded_token_share(lengths, micro_batch_size), packed_token_share(lengths, limit)
    return PackingEfficiency(padded, micro_batch_size, packed, limit)


def length_histogram(lengths: "Numbers") -> tuple[tuple[int, int, int], ...]:
    """Return bars of equal width from the shortest to the longest row."""
    import numpy as np

    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // _HISTOGRAM_BARS))
    edges = range(low, high + 1, width)
    counts = np.bincount((lengths - low) // width, minlength=len(edges)).tolist()
    return tuple((edge, min(edge + width - 1, high), count) for edge, count in zip(edges, counts, strict=True))


def padded_token_share(lengths: "Numbers", size: int) -> float:
    """Return the share of tokens in padded batches of `size` rows in random order (seed 0)."""
    import numpy as np

    shuffled = np.random.default_rng(0).permutation(lengths)
    begins = np.arange(0, len(shuffled), size)
    longest = np.maximum.reduceat(shuffled, begins).astype(np.int64)
    positions = int((longest * np.diff(begins, append=len(shuffled))).sum())
    return float(lengths.sum()) / positions


def packed_token_share(lengths: "Numbers", limit: int) -> float:
    """Return the share of tokens in rows of `limit` tokens, packed by best-fit decreasing.

    Rows of the same length are placed together, so that the time depends on the number of lengths.
    """
    import numpy as np

    rows = 0
    free: list[int] = []  # free tokens of packed rows, sorted, each value once
    count: dict[int, int] = {}  # number of packed rows with that many free tokens
    counts = np.bincount(lengths)
    values = np.flatnonzero(counts)[::-1]
    for length, left in zip(values.tolist(), counts[values].tolist(), strict=True):
        while left:
            # The fullest packed row that has room, or a new one.
            index = bisect_left(free, length)
            room = free[index] if index < len(free) else limit
            # Each packed row is filled before the next one, so only the last one can stay partly filled.
            per_row = min(left, max(1, room // length))
            row_count = left // per_row
            if index < len(free):
                row_count = min(row_count, count[room])
                count[room] -= row_count
                if not count[room]:
                    free.pop(index)
            else:
                rows += row_count
            # The filled rows have this many free tokens from now on.
            rest = room - per_row * length
            if rest not in count or not count[rest]:
                insort(free, rest)
                count[rest] = 0
            count[rest] += row_count
            left -= row_count * per_row
    return float(lengths.sum()) / (rows * limit)
