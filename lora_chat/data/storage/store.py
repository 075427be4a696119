"""Encoded dialogues on disk, mapped into memory when they are read: any number of them, in little memory."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.data.dialogue import Dialogue
from lora_chat.data.encoding.encode import IGNORE_INDEX, EncodedDialogue
from lora_chat.data.storage.ledger import Ledger
from lora_chat.errors import IntegrityError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

ROWS_FILE, UNITS_FILE, LEDGER_FILE = "rows.arrow", "units.arrow", "ledger.json"
_TABLE_FILES = (ROWS_FILE, UNITS_FILE)


@dataclass(frozen=True)
class StoreUnit:
    """What is held out or trained as a whole: a dialogue, or a block of plain text."""

    dialogue: Dialogue | None
    rows: tuple[EncodedDialogue, ...]
    path: str
    line: int
    digest: int


class StoreWriter:
    """Writes rows and units as Arrow streams, batch by batch."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self._folder = folder
        ids, mask, text = pa.list_(pa.int32()), pa.list_(pa.bool_()), pa.string()
        self._rows = pa.schema([("input_ids", ids), ("labels", mask), ("unit", pa.int64())])
        self._units = pa.schema([("digest", pa.int64()), ("path", text), ("line", pa.int64()), ("dialogue", text)])
        packed = pa.ipc.IpcWriteOptions(compression="zstd")
        self._row_file = pa.ipc.new_stream(str(folder / ROWS_FILE), self._rows)
        self._unit_file = pa.ipc.new_stream(str(folder / UNITS_FILE), self._units, options=packed)
        self._count = 0

    def write(self, units: Sequence[StoreUnit]) -> None:
        """Add some units with their rows."""
        import pyarrow as pa

        rows = [(row, number) for number, unit in enumerate(units, self._count) for row in unit.rows]
        self._count += len(units)
        ids = [row.input_ids for row, _ in rows]
        mask = [[label != IGNORE_INDEX for label in row.labels] for row, _ in rows]
        columns = [ids, mask, [number for _, number in rows]]
        self._row_file.write_batch(pa.record_batch(columns, schema=self._rows))
        said = [json.dumps(unit.dialogue.as_row, ensure_ascii=False) if unit.dialogue else None for unit in units]
        columns = [[u.digest for u in units], [u.path for u in units], [u.line for u in units], said]
        self._unit_file.write_batch(pa.record_batch(columns, schema=self._units))

    def close(self, ledger: Ledger) -> None:
        """End the files; the ledger comes last."""
        self._row_file.close()
        self._unit_file.close()
        sizes = {name: (self._folder / name).stat().st_size for name in _TABLE_FILES}
        text = json.dumps({"sizes": sizes, "ledger": ledger.as_dict()}, ensure_ascii=False)
        (self._folder / LEDGER_FILE).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class DialogueStore:
    """What one source became."""

    folder: Path

    @cached_property
    def ledger(self) -> Ledger:
        """Its account."""
        return Ledger(**self._manifest["ledger"])

    @property
    def is_complete(self) -> bool:
        """Whether its files are there in full; what is inside them is not looked at."""
        try:
            sizes = self._manifest["sizes"]
            return self.ledger.rows >= 0 and all(
                (self.folder / name).stat().st_size == sizes[name] for name in _TABLE_FILES
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return False

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / LEDGER_FILE).read_text(encoding="utf-8"))
        return found

    def open_rows(self) -> Any:
        """Its rows, a datasets.Dataset of `input_ids`, `labels` (a mask) and `unit`, not in memory."""
        from datasets import Dataset

        with self._convert_read_errors():
            table = Dataset.from_file(str(self.folder / ROWS_FILE))
            if table.column_names != ["input_ids", "labels", "unit"] or len(table) != self.ledger.rows:
                raise ValueError("other columns or rows than its ledger has")
            return table

    @cached_property
    def digests(self) -> "np.ndarray[Any, Any]":
        """(units,) int64 of what each unit says."""
        import numpy as np

        parts = [batch.column("digest").to_numpy() for batch in self._batches(["digest"])]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def read_units(self, wanted: "np.ndarray[Any, Any]") -> Iterator[tuple[int, str, int, dict[str, Any] | None]]:
        """Number, path, line and dialogue (as a row of `messages`) of the units in `wanted`, sorted numbers."""
        begin = 0
        for batch in self._batches(["path", "line", "dialogue"]):
            end = begin + batch.num_rows
            inside = wanted[(wanted >= begin) & (wanted < end)] - begin
            for place in inside.tolist():
                path, line, said = (batch.column(name)[place].as_py() for name in ("path", "line", "dialogue"))
                yield begin + place, path, line, json.loads(said) if said else None
            begin = end

    def _batches(self, names: list[str]) -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        with self._convert_read_errors(), pa.memory_map(str(self.folder / UNITS_FILE)) as file:
            fields = pa.ipc.open_stream(file).schema.names
            file.seek(0)
            options = pa.ipc.IpcReadOptions(included_fields=[fields.index(name) for name in names])
            yield from pa.ipc.open_stream(file, options=options)

    @contextmanager
    def _convert_read_errors(self) -> Iterator[None]:
        """What Arrow says of files that are not what was written."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            raise IntegrityError(f"{self.folder} is damaged; delete it. ({error})") from error
