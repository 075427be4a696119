"""Read encoded dialogues from memory-mapped files, so that any number needs little memory."""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lora_chat.data.row_lengths import LengthField, RowLengths
from lora_chat.data.storage.ledger import Ledger
from lora_chat.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

ROWS_FILE, UNITS_FILE, LEDGER_FILE = "rows.arrow", "units.arrow", "ledger.json"
COLUMNS = {
    "digests": "<i8",
    "first_rows": "<i8",
    "tokens": "<i4",
    "through_last_label": "<i4",
    "supervised": "<i4",
}
"""Plain columns and their types: digest and first row of each unit, then the fields of `RowLengths`. They are mapped
into memory, so that a start reads no other part of the store and several processes share one copy."""
_MAX_BATCH = 1 << 40
STORED_FILES = (ROWS_FILE, UNITS_FILE, *COLUMNS)


@dataclass(frozen=True)
class DialogueStore:
    """The encoded dialogues of one source."""

    folder: Path

    @cached_property
    def ledger(self) -> Ledger:
        """Return the counts of the source."""
        return Ledger(**self._manifest["ledger"])

    @property
    def is_complete(self) -> bool:
        """Return whether all files exist in their full size; their content is not checked."""
        try:
            sizes = self._manifest["sizes"]
            return self.ledger.rows >= 0 and all(
                (self.folder / name).stat().st_size == sizes[name] for name in STORED_FILES
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return False

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        """Return the sizes of the files and the ledger."""
        manifest: dict[str, Any] = json.loads((self.folder / LEDGER_FILE).read_text(encoding="utf-8"))
        return manifest

    def open_rows(self) -> "Dataset":
        """Open the rows, with `input_ids` and `labels` (a mask), without reading them into memory."""
        from datasets import Dataset

        with self._convert_read_errors():
            table = Dataset.from_file(str(self.folder / ROWS_FILE))
            if table.column_names != ["input_ids", "labels"] or len(table) != self.ledger.rows:
                raise ValueError("its columns or its number of rows differ from the ledger")
            return table

    def read_row_batches(self) -> "Iterator[pa.RecordBatch]":
        """Yield all rows in batches."""
        import pyarrow as pa

        with self._convert_read_errors(), pa.memory_map(str(self.folder / ROWS_FILE)) as file:
            yield from pa.ipc.open_stream(file)

    @cached_property
    def digests(self) -> "np.ndarray[Any, Any]":
        """Return the digests of the units, (units,) int64."""
        return self._map_column("digests", self.unit_count)

    @cached_property
    def first_rows(self) -> "np.ndarray[Any, Any]":
        """Return the number of the first row of each unit, then the number of all rows, (units + 1,)."""
        first_rows = self._map_column("first_rows")
        with self._convert_read_errors():
            if not len(first_rows) or first_rows[0] != 0 or first_rows[-1] != self.ledger.rows:
                raise ValueError("its number of rows differs from the ledger")
        return first_rows

    @property
    def unit_count(self) -> int:
        """Return the number of units."""
        return len(self.first_rows) - 1

    @cached_property
    def row_lengths(self) -> RowLengths:
        """Return the lengths of all rows."""
        fields: tuple[LengthField, ...] = get_args(LengthField)
        with self._convert_read_errors():
            rows = self.ledger.rows
        return RowLengths(*(self._map_column(name, rows) for name in fields))

    def read_units(self, numbers: "np.ndarray[Any, Any]") -> Iterator[tuple[int, str, int, dict[str, Any] | None]]:
        """Yield number, path, line and dialogue (a row with `messages`, or None) of units; `numbers` are sorted."""
        for begin, batch in self.read_unit_batches(numbers):
            end = begin + batch.num_rows
            indices = numbers[numbers.searchsorted(begin) : numbers.searchsorted(end)] - begin
            for index in indices.tolist():
                path, line, row = (batch.column(name)[index].as_py() for name in ("path", "line", "dialogue"))
                yield begin + index, path, line, json.loads(row) if row else None

    def find_lines(self, locations: Collection[tuple[str, int]]) -> list[int]:
        """Return the numbers of the units at some files and lines."""
        import numpy as np

        lines, numbers = [line for _, line in locations], []
        for begin, batch in self.read_unit_batches(names=["path", "line"]):
            paths = batch.column("path")
            line_of = batch.column("line").to_numpy()
            candidates = np.flatnonzero(np.isin(line_of, lines)).tolist()
            numbers += [begin + i for i in candidates if (paths[i].as_py(), int(line_of[i])) in locations]
        return numbers

    def read_unit_batches(
        self, numbers: "np.ndarray[Any, Any] | None" = None, names: Sequence[str] = ("path", "line", "dialogue")
    ) -> "Iterator[tuple[int, pa.RecordBatch]]":
        """Yield the first number and some columns of each batch of units, or only of the batches with some numbers."""
        import numpy as np
        import pyarrow as pa

        with self._convert_read_errors(), pa.memory_map(str(self.folder / UNITS_FILE)) as file:
            fields = pa.ipc.open_file(file).schema.names
            options = pa.ipc.IpcReadOptions(included_fields=[fields.index(name) for name in names])
            table = pa.ipc.open_file(file, options=options)
            ends = np.cumsum([0, *self._unit_batches], dtype=np.int64)
            if len(ends) - 1 != table.num_record_batches or ends[-1] != self.unit_count:
                raise ValueError("its batches differ from the ledger")
            wanted = range(len(ends) - 1)
            if numbers is not None:
                wanted = np.unique(ends.searchsorted(numbers, side="right") - 1).tolist()
            for index in wanted:
                batch = table.get_batch(index)
                if batch.num_rows != ends[index + 1] - ends[index]:
                    raise ValueError("its batches differ from the ledger")
                yield int(ends[index]), batch

    @property
    def _unit_batches(self) -> list[int]:
        """Return the units of each batch. Raises ValueError if the manifest has no such list."""
        sizes = self._manifest.get("unit_batches")
        if not isinstance(sizes, list) or not all(type(size) is int and 0 < size <= _MAX_BATCH for size in sizes):
            raise ValueError("it has no list of its batches")
        return sizes

    def _map_column(self, name: str, length: int | None = None) -> "np.ndarray[Any, Any]":
        """Map a column into memory. Raise IntegrityError if it does not have the expected length."""
        import numpy as np

        with self._convert_read_errors():
            path = self.folder / name
            values: np.ndarray[Any, Any] = (
                np.memmap(path, COLUMNS[name], "r").view(np.ndarray)
                if path.stat().st_size
                else np.zeros(0, COLUMNS[name])
            )
            if length is not None and len(values) != length:
                raise ValueError(f"{name} has {len(values):,} values for {length:,}")
            return values

    @contextmanager
    def _convert_read_errors(self) -> Iterator[None]:
        """Raise IntegrityError in place of the errors of Arrow on damaged files."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            raise IntegrityError(f"{self.folder} is damaged ({error}). Fix: delete it.") from error
