"""Write encoded dialogues as Arrow files, with plain columns beside them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.data.dialogue import Dialogue
from lora_chat.data.encoding.encode import IGNORE_INDEX, EncodedDialogue
from lora_chat.data.row_lengths import measure_masks
from lora_chat.data.storage.encode_chunk import EncodedChunk
from lora_chat.data.storage.ledger import Ledger
from lora_chat.data.storage.store import COLUMNS, LEDGER_FILE, ROWS_FILE, STORED_FILES, UNITS_FILE, DialogueStore

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_BATCH_ROWS, _BATCH_UNITS, _BATCH_BYTES = 4096, 1024, 1 << 23
"""Most rows, units and bytes that are collected before a batch is written. Each batch costs memory when a table is
opened; a batch of units is decompressed as a whole."""


@dataclass(frozen=True)
class StoreUnit:
    """A dialogue or a block of plain text, which is trained or held out as a whole."""

    dialogue: Dialogue | None
    rows: tuple[EncodedDialogue, ...]
    path: str
    line: int
    digest: int


def make_units(encoded: EncodedChunk) -> list[StoreUnit]:
    """Return the dialogues of a chunk as units."""
    return [
        StoreUnit(dialogue, rows, dialogue.path, dialogue.line, dialogue.digest) for dialogue, rows in encoded.dialogues
    ]


class StoreWriter:
    """Writer of rows and units as Arrow files, and of plain columns beside them."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self._folder = folder
        ids, mask, text = pa.list_(pa.int32()), pa.list_(pa.bool_()), pa.string()
        self._rows = pa.schema([("input_ids", ids), ("labels", mask)])
        self._units = pa.schema([("path", text), ("line", pa.int64()), ("dialogue", text)])
        compression = pa.ipc.IpcWriteOptions(compression="zstd")
        self._row_file = BatchedFile(pa.ipc.new_stream(str(folder / ROWS_FILE), self._rows), _BATCH_ROWS)
        self._unit_file = BatchedFile(
            pa.ipc.new_file(str(folder / UNITS_FILE), self._units, options=compression), _BATCH_UNITS
        )
        self._columns = {name: (folder / name).open("wb") for name in COLUMNS}
        self._row_count = 0

    def write(self, units: Sequence[StoreUnit]) -> None:
        """Append units with their rows."""
        import pyarrow as pa

        rows = [row for unit in units for row in unit.rows]
        ids = [row.input_ids for row in rows]
        mask = [[label != IGNORE_INDEX for label in row.labels] for row in rows]
        batch = pa.record_batch([ids, mask], schema=self._rows)
        self._row_file.write(batch)
        dialogues = [json.dumps(unit.dialogue.as_row, ensure_ascii=False) if unit.dialogue else None for unit in units]
        columns = [[u.path for u in units], [u.line for u in units], dialogues]
        self._unit_file.write(pa.record_batch(columns, schema=self._units))
        lengths = measure_masks(batch.column("labels"))
        first_rows = list(accumulate((len(unit.rows) for unit in units), initial=self._row_count))
        self._row_count = first_rows.pop()
        self._append("digests", [unit.digest for unit in units])
        self._append("first_rows", first_rows)
        for name in ("tokens", "through_last_label", "supervised"):
            self._append(name, getattr(lengths, name))

    def append(self, store: DialogueStore) -> None:
        """Append all units of another store."""
        for row_batch in store.read_row_batches():
            self._row_file.write(row_batch)
        for _, unit_batch in store.read_unit_batches():
            self._unit_file.write(unit_batch)
        self._append("digests", store.digests)
        self._append("first_rows", store.first_rows[:-1] + self._row_count)
        for name in ("tokens", "through_last_label", "supervised"):
            self._append(name, getattr(store.row_lengths, name))
        self._row_count += store.ledger.rows

    def close(self, ledger: Ledger) -> None:
        """Close the files, and write the ledger last, which marks the store as complete."""
        self._append("first_rows", [self._row_count])
        self._row_file.close()
        self._unit_file.close()
        for file in self._columns.values():
            file.close()
        sizes = {name: (self._folder / name).stat().st_size for name in STORED_FILES}
        manifest = {"sizes": sizes, "unit_batches": self._unit_file.batch_sizes, "ledger": ledger.as_dict()}
        (self._folder / LEDGER_FILE).write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")

    def _append(self, name: str, values: "Sequence[int] | np.ndarray[Any, Any]") -> None:
        """Append values to a column."""
        import numpy as np

        self._columns[name].write(np.asarray(values, COLUMNS[name]).tobytes())


class BatchedFile:
    """An Arrow file whose batches are large, although few rows are written at a time."""

    def __init__(self, writer: "pa.ipc.RecordBatchStreamWriter", max_rows: int) -> None:
        self._writer = writer
        self._max_rows = max_rows
        self._pending: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self.batch_sizes: list[int] = []
        """Rows of each batch in the file."""

    def write(self, batch: "pa.RecordBatch") -> None:
        """Add rows, and write the rows that are pending if they are many."""
        self._pending.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= self._max_rows or self._bytes >= _BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the pending rows, and end the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        """Write the pending rows as one batch."""
        import pyarrow as pa

        if self._rows:
            batch = pa.concat_batches(self._pending)
            self._writer.write_batch(batch)
            self.batch_sizes.append(batch.num_rows)
        self._pending, self._rows, self._bytes = [], 0, 0
