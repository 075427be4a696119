"""Training, validation and test sets, built from stores and left on disk."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, overload

from lora_chat.data.dialogue import Dialogue
from lora_chat.data.encoding.encode import IGNORE_INDEX, EncodedDialogue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.row_lengths import RowLengths, concatenate_lengths, measure_masks
from lora_chat.data.split import choose_held_out, choose_test, repeat_by_weight
from lora_chat.data.storage.store import DialogueStore
from lora_chat.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    Numbers = np.ndarray[Any, Any]


class EncodedRows(Sequence[EncodedDialogue]):
    """Rows that are read from disk when they are used; `dataset` has them as datasets.Dataset."""

    def __init__(self, table: "Dataset", lengths: RowLengths | None = None) -> None:
        """Use the columns `input_ids` and `labels` (a mask) of a table; `lengths` are measured if they are unknown."""
        self.dataset = table.with_transform(_mask_to_labels)
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def lengths(self) -> "Numbers":
        """Return the length of each row in tokens, (rows,), without reading the rows."""
        return self.measured.tokens

    @cached_property
    def measured(self) -> RowLengths:
        """Return the lengths of all rows in order, without reading the rows."""
        import numpy as np

        if self._lengths is not None:
            return self._lengths
        chunks = self.dataset.data.column("labels").chunks
        lengths = concatenate_lengths([measure_masks(chunk) for chunk in chunks if len(chunk)])
        index_table = self.dataset._indices
        return lengths if index_table is None else lengths.select(np.asarray(index_table.column(0)))

    @overload
    def __getitem__(self, index: int) -> EncodedDialogue: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedDialogue]: ...
    def __getitem__(self, index: int | slice) -> EncodedDialogue | list[EncodedDialogue]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return EncodedDialogue(**self.dataset[index])


@dataclass(frozen=True)
class DialogueSet:
    """A selection of units from stores, with their rows."""

    rows: EncodedRows
    units_by_store: tuple[tuple[DialogueStore, "Numbers"], ...]
    """Each store with the numbers of its units, sorted and unique."""
    block_count: int = 0
    """Number of rows, the last ones, that are blocks of plain text from no store."""
    repeated_units: tuple["Numbers", ...] = ()
    """For each store, the numbers of its units in the order of the rows, repeated or sampled by its weight."""

    def __len__(self) -> int:
        return sum(len(units) for _, units in self.units_by_store) + self.block_count

    def read(self) -> Iterator[Dialogue | list[int]]:
        """Yield the dialogues, and the ids of blocks of plain text."""
        for store, units in self.units_by_store:
            rows = EncodedRows(store.open_rows())
            for number, path, line, row in store.read_units(units):
                if row:  # its rows are not read, which takes most of the time
                    yield replace(parse_dialogue(row, line), path=path)
                else:
                    yield rows[int(store.first_rows[number])].input_ids
        yield from self.read_blocks()

    def read_blocks(self) -> Iterator[list[int]]:
        """Yield the ids of the blocks of plain text that are from no store."""
        yield from (self.rows[index].input_ids for index in range(len(self.rows) - self.block_count, len(self.rows)))

    def read_rows(self) -> Iterator[tuple[str, int, list[EncodedDialogue]]]:
        """Yield file, line and rows of each dialogue or block."""
        return ((path, line, rows) for path, line, _, rows in self.iter_units())

    def locate(self, beginnings: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
        """Return file and line of the dialogues whose rows begin with one of these ids."""
        wanted = {tuple(ids) for ids in beginnings}
        lengths = sorted({len(ids) for ids in wanted})
        return [
            (path, line)
            for path, line, rows in self.read_rows()
            if any(tuple(row.input_ids[:length]) in wanted for row in rows for length in lengths)
        ]

    def iter_units(self) -> Iterator[tuple[str, int, Dialogue | None, list[EncodedDialogue]]]:
        """Yield file, line, dialogue (None for a block of plain text) and rows of each unit."""
        for store, units in self.units_by_store:
            rows = EncodedRows(store.open_rows())
            for number, path, line, row in store.read_units(units):
                begin, end = store.first_rows[number : number + 2].tolist()
                dialogue = replace(parse_dialogue(row, line), path=path) if row else None
                yield path, line, dialogue, rows[begin:end]


def build_full_set(stores: Sequence[DialogueStore]) -> DialogueSet:
    """Return a set of all units of some stores."""
    import numpy as np

    return _build_set([(store, np.arange(store.unit_count)) for store in stores])


def build_block_set(ids: Sequence[list[int]]) -> DialogueSet:
    """Return a set of blocks of plain text that are in memory."""
    from datasets import Dataset

    table = Dataset.from_dict({"input_ids": list(ids), "labels": [[True] * len(block) for block in ids]})
    return DialogueSet(EncodedRows(table), (), len(ids))


def build_empty_set() -> DialogueSet:
    """Return a set of no dialogues, for data without a validation or test set."""
    from datasets import Dataset, Features, List, Value

    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("bool"))})
    return DialogueSet(EncodedRows(Dataset.from_dict({"input_ids": [], "labels": []}, features)), ())


def concatenate_sets(sets: Sequence[DialogueSet]) -> DialogueSet:
    """Return the concatenation of sets, with sets of blocks last."""
    from datasets import concatenate_datasets

    if len(sets) <= 1:
        return sets[0] if sets else build_empty_set()
    sets = sorted(sets, key=lambda dialogues: dialogues.block_count > 0)
    table = concatenate_datasets([dialogues.rows.dataset.with_format(None) for dialogues in sets])
    units_by_store = tuple(part for dialogues in sets for part in dialogues.units_by_store)
    lengths = concatenate_lengths([dialogues.rows.measured for dialogues in sets])
    return DialogueSet(EncodedRows(table, lengths), units_by_store, sum(dialogues.block_count for dialogues in sets))


def select_units(dialogues: DialogueSet, numbers: Sequence[int]) -> DialogueSet:
    """Return a set whose `iter_units` yields only some units, numbered in the order of `iter_units` of the whole set.

    Its rows remain those of the whole set.
    """
    import numpy as np

    selected, parts, first = np.asarray(numbers, np.int64), [], 0
    for store, units in dialogues.units_by_store:
        here = selected[(selected >= first) & (selected < first + len(units))] - first
        parts.append((store, units[np.unique(here)]))
        first += len(units)
    return replace(dialogues, units_by_store=tuple(parts), block_count=0)


def find_units(dialogues: DialogueSet, locations: Collection[tuple[str, int]]) -> list[int]:
    """Return the numbers of the units at some files and lines, in the order of `iter_units`."""
    import numpy as np

    numbers: list[int] = []
    first = 0
    for store, units in dialogues.units_by_store:
        numbers += (first + np.flatnonzero(np.isin(units, store.find_lines(locations)))).tolist()
        first += len(units)
    return numbers


def leave_out_units(dialogues: DialogueSet, numbers: Sequence[int]) -> DialogueSet:
    """Return a set without some units, numbered in the order of `iter_units`; raises DataError if none is left."""
    import numpy as np

    left_out = np.asarray(numbers, np.int64)
    remaining, first = [], 0
    for (store, units), repeated in zip(dialogues.units_by_store, dialogues.repeated_units, strict=True):
        here = left_out[(left_out >= first) & (left_out < first + len(units))] - first
        remaining.append((store, repeated[~np.isin(repeated, units[here])]))
        first += len(units)
    return _build_set(remaining)


def split_by_share(
    stores: Sequence[DialogueStore],
    weights: Sequence[float],
    share: float,
    seed: int,
    max_held_out: int | None = None,
    test_share: float = 0.0,
) -> tuple[DialogueSet, DialogueSet, DialogueSet]:
    """Return training, validation and test dialogues; equal dialogues of all sources are in the same set.

    A set whose share is 0 is empty. `max_held_out` limits both other sets.
    """
    import numpy as np

    digests = np.concatenate([store.digests for store in stores])
    none = np.zeros(len(digests), bool)
    is_validation = choose_held_out(digests, share, seed, max_held_out) if share else none
    is_test = choose_test(digests, is_validation, test_share, seed, max_held_out) if test_share else none
    validation, test, train, start = [], [], [], 0
    for store, weight in zip(stores, weights, strict=True):
        here = slice(start, start + len(store.digests))
        start += len(store.digests)
        validation.append((store, np.flatnonzero(is_validation[here])))
        test.append((store, np.flatnonzero(is_test[here])))
        is_trained = ~(is_validation[here] | is_test[here])
        train.append((store, _repeat_units(store, np.flatnonzero(is_trained), weight, seed)))
    return (
        _build_set(train),
        _build_set(validation) if share else build_empty_set(),
        _build_set(test) if test_share else build_empty_set(),
    )


def build_weighted_set(stores: Sequence[DialogueStore], weights: Sequence[float], seed: int) -> DialogueSet:
    """Return all dialogues of some stores, repeated or sampled by the weight of each store."""
    import numpy as np

    return _build_set(
        [
            (store, _repeat_units(store, np.arange(store.unit_count), weight, seed))
            for store, weight in zip(stores, weights, strict=True)
        ]
    )


def _repeat_units(store: DialogueStore, units: "Numbers", weight: float, seed: int) -> "Numbers":
    """Repeat or sample units of a store by its weight."""
    return repeat_by_weight(units, store.digests[units], weight, seed)


def _build_set(units_by_store: Sequence[tuple[DialogueStore, "Numbers"]]) -> DialogueSet:
    """Return a set of these units; raises DataError if none exist."""
    import numpy as np
    from datasets import concatenate_datasets

    tables, lengths = [], []
    for store, units in units_by_store:
        table = store.open_rows()
        rows = _find_rows(units, store.first_rows)
        is_whole_table = len(rows) == len(table) and bool((rows == np.arange(len(rows))).all())
        if len(rows):
            tables.append(table if is_whole_table else _select_rows(table, rows))
            lengths.append(store.row_lengths if is_whole_table else store.row_lengths.select(rows))
    if not tables:
        raise DataError("No dialogue is left for training or validation. Fix: add dialogues to the data.")
    selected = EncodedRows(concatenate_datasets(tables), concatenate_lengths(lengths))
    unique_units = tuple((store, _sort_units(units)) for store, units in units_by_store)
    return DialogueSet(selected, unique_units, repeated_units=tuple(units for _, units in units_by_store))


def _select_rows(table: "Dataset", rows: "Numbers") -> "Dataset":
    """Return a table with only some rows. `Dataset.select` would make a Python list of them."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    indices = pa.table({"indices": pa.array(rows.view("uint64"))})  # without a copy
    fingerprint = blake2b(rows.tobytes(), key=table._fingerprint.encode()[:64], digest_size=8).hexdigest()
    return Dataset(table.data, table.info, table.split, InMemoryTable(indices), fingerprint)


def _sort_units(units: "Numbers") -> "Numbers":
    """Return the different numbers of units, sorted."""
    import numpy as np

    if bool((units[1:] > units[:-1]).all()):
        return units
    ordered: Numbers = np.sort(units)
    different: Numbers = ordered[np.append(True, ordered[1:] > ordered[:-1])]
    return different


def _find_rows(units: "Numbers", first_rows: "Numbers") -> "Numbers":
    """Return the rows of units in the order of the units; the rows of a unit are consecutive."""
    import numpy as np

    begins = first_rows[units]
    counts = first_rows[units + 1] - begins
    if bool((counts == 1).all()):
        return units if bool((begins == units).all()) else begins
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    result: Numbers = np.repeat(begins, counts) + offsets
    return result


def _mask_to_labels(batch: dict[str, Any]) -> dict[str, Any]:
    """Convert the mask of a batch to labels when rows are read."""
    labels = [
        [token if carries else IGNORE_INDEX for token, carries in zip(ids, mask, strict=True)]
        for ids, mask in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    return {"input_ids": batch["input_ids"], "labels": labels}
