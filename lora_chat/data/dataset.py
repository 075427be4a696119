"""Stores -> what is trained and what is held out, still on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from lora_chat.data.dialogue import Dialogue
from lora_chat.data.encoding.encode import IGNORE_INDEX, EncodedDialogue
from lora_chat.data.parsing.messages import parse_dialogue
from lora_chat.data.split import choose_held_out, repeat_by_weight
from lora_chat.data.storage.store import DialogueStore
from lora_chat.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, Any]


class EncodedRows(Sequence[EncodedDialogue]):
    """Rows that stay on disk until they are asked for; `dataset` has them as datasets.Dataset."""

    def __init__(self, table: Any) -> None:
        self.dataset = table.with_transform(_mask_to_labels)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def lengths(self) -> "Numbers":
        """(rows,) tokens of every row, without reading them."""
        import numpy as np
        import pyarrow.compute as pc

        lengths: Numbers = pc.list_value_length(self.dataset.data.column("input_ids")).to_numpy()
        chosen = self.dataset._indices
        return lengths if chosen is None else lengths[np.asarray(chosen.column(0))]

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
    """Some units of some stores."""

    rows: EncodedRows
    units_by_store: tuple[tuple[DialogueStore, "Numbers"], ...]
    """Of every store the numbers of its units, in order, none twice."""
    block_count: int = 0
    """How many of the rows, the last ones, are blocks of plain text that are in no store."""

    def __len__(self) -> int:
        return sum(len(units) for _, units in self.units_by_store) + self.block_count

    def read(self) -> Iterator[Dialogue | list[int]]:
        """The dialogues, or the ids of blocks of plain text, one at a time."""
        for _, _, dialogue, rows in self.iter_units():
            yield rows[0].input_ids if dialogue is None else dialogue
        yield from (self.rows[index].input_ids for index in range(len(self.rows) - self.block_count, len(self.rows)))

    def read_rows(self) -> Iterator[tuple[str, int, list[EncodedDialogue]]]:
        """File, line and rows of every dialogue or block, one at a time."""
        return ((path, line, rows) for path, line, _, rows in self.iter_units())

    def locate(self, beginnings: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
        """File and line of the dialogues whose rows begin with these ids."""
        wanted = {tuple(ids) for ids in beginnings}
        lengths = sorted({len(ids) for ids in wanted})
        return [
            (path, line)
            for path, line, rows in self.read_rows()
            if any(tuple(row.input_ids[:length]) in wanted for row in rows for length in lengths)
        ]

    def iter_units(self) -> Iterator[tuple[str, int, Dialogue | None, list[EncodedDialogue]]]:
        """File, line, dialogue (None for a block of plain text) and rows of everything, one at a time."""
        for store, units in self.units_by_store:
            table = store.open_rows()
            unit_of_row, rows = _read_unit_numbers(table), EncodedRows(table.remove_columns("unit"))
            for number, path, line, said in store.read_units(units):
                begin, end = unit_of_row.searchsorted([number, number + 1]).tolist()
                dialogue = replace(parse_dialogue(said, line), path=path) if said else None
                yield path, line, dialogue, rows[begin:end]


def build_full_set(stores: Sequence[DialogueStore]) -> DialogueSet:
    """Everything in some stores."""
    import numpy as np

    return _build_set([(store, np.arange(len(store.digests))) for store in stores])


def build_block_set(ids: Sequence[list[int]]) -> DialogueSet:
    """Blocks of plain text that are in memory already."""
    from datasets import Dataset

    table = Dataset.from_dict({"input_ids": list(ids), "labels": [[True] * len(block) for block in ids]})
    return DialogueSet(EncodedRows(table), (), len(ids))


def concatenate_sets(sets: Sequence[DialogueSet]) -> DialogueSet:
    """Sets one behind the other, those of blocks last."""
    from datasets import concatenate_datasets

    if len(sets) == 1:
        return sets[0]
    sets = sorted(sets, key=lambda one: one.block_count > 0)
    table = concatenate_datasets([one.rows.dataset.with_format(None) for one in sets])
    parts = tuple(part for one in sets for part in one.units_by_store)
    return DialogueSet(EncodedRows(table), parts, sum(one.block_count for one in sets))


def split_by_share(
    stores: Sequence[DialogueStore], weights: Sequence[float], share: float, seed: int, max_held_out: int | None = None
) -> tuple[DialogueSet, DialogueSet]:
    """Training and held-out dialogues; those that say the same are on one side, whatever their source."""
    import numpy as np

    held = choose_held_out(np.concatenate([store.digests for store in stores]), share, seed, max_held_out)
    parts, train, start = [], [], 0
    for store, weight in zip(stores, weights, strict=True):
        mine = held[start : start + len(store.digests)]
        start += len(mine)
        parts.append((store, np.flatnonzero(mine)))
        train.append((store, _repeat_units(store, np.flatnonzero(~mine), weight, seed)))
    return _build_set(train), _build_set(parts)


def build_weighted_set(stores: Sequence[DialogueStore], weights: Sequence[float], seed: int) -> DialogueSet:
    """All dialogues of some sources, each as often as its weight says."""
    import numpy as np

    return _build_set(
        [
            (store, _repeat_units(store, np.arange(len(store.digests)), weight, seed))
            for store, weight in zip(stores, weights, strict=True)
        ]
    )


def _repeat_units(store: DialogueStore, units: "Numbers", weight: float, seed: int) -> "Numbers":
    return repeat_by_weight(units, store.digests[units], weight, seed)


def _build_set(units_by_store: Sequence[tuple[DialogueStore, "Numbers"]]) -> DialogueSet:
    import numpy as np
    from datasets import concatenate_datasets

    tables = []
    for store, units in units_by_store:
        table = store.open_rows()
        rows = _find_rows(units, _read_unit_numbers(table))
        table = table.remove_columns("unit")
        whole = len(rows) == len(table) and bool((rows == np.arange(len(rows))).all())
        tables.append(table if whole else table.select(rows))
    if not sum(len(table) for table in tables):
        raise DataError("No dialogue is left to train on or to measure with.")
    kept = EncodedRows(concatenate_datasets([table for table in tables if len(table)]))
    return DialogueSet(kept, tuple((store, np.unique(units)) for store, units in units_by_store))


def _read_unit_numbers(table: Any) -> "Numbers":
    """(rows,) the unit that each row of a store belongs to, in order."""
    found: Numbers = table.data.column("unit").to_numpy()
    return found


def _find_rows(units: "Numbers", unit_of_row: "Numbers") -> "Numbers":
    """The rows of units, in the units' order; a unit's rows stand side by side."""
    import numpy as np

    begins, ends = unit_of_row.searchsorted(units), unit_of_row.searchsorted(units, side="right")
    counts = ends - begins
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    result: Numbers = np.repeat(begins, counts) + offsets
    return result


def _mask_to_labels(batch: dict[str, Any]) -> dict[str, Any]:
    """A mask becomes labels when rows are read."""
    labels = [
        [token if carries else IGNORE_INDEX for token, carries in zip(ids, mask, strict=True)]
        for ids, mask in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    return {"input_ids": batch["input_ids"], "labels": labels}
