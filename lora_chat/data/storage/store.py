"""Write and read encoded dialogues as memory-mapped Arrow files, so that any number needs little memory."""

import json
from collections.abc import Collection, Iterator, Sequence
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
    from datasets import Dataset

ROWS_FILE, UNITS_FILE, LEDGER_FILE = "rows.arrow", "units.arrow", "ledger.json"
_TABLE_FILES = (ROWS_FILE, UNITS_FILE)


@dataclass(frozen=True)
class StoreUnit:
    """A dialogue or a block of plain text, which is trained or held out as a whole."""

    dialogue: Dialogue | None
    rows: tuple[EncodedDialogue, ...]
    path: str
    line: int
    digest: int


class StoreWriter:
    """Writer of rows and units as Arrow streams."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self._folder = folder
        ids, mask, text = pa.list_(pa.int32()), pa.list_(pa.bool_()), pa.string()
        self._rows = pa.schema([("input_ids", ids), ("labels", mask), ("unit", pa.int64())])
        self._units = pa.schema([("digest", pa.int64()), ("path", text), ("line", pa.int64()), ("dialogue", text)])
        compression = pa.ipc.IpcWriteOptions(compression="zstd")
        self._row_file = pa.ipc.new_stream(str(folder / ROWS_FILE), self._rows)
        self._unit_file = pa.ipc.new_stream(str(folder / UNITS_FILE), self._units, options=compression)
        self._count = 0

    def write(self, units: Sequence[StoreUnit]) -> None:
        """Append a batch of units with their rows."""
        import pyarrow as pa

        rows = [(row, number) for number, unit in enumerate(units, self._count) for row in unit.rows]
        self._count += len(units)
        ids = [row.input_ids for row, _ in rows]
        mask = [[label != IGNORE_INDEX for label in row.labels] for row, _ in rows]
        columns = [ids, mask, [number for _, number in rows]]
        self._row_file.write_batch(pa.record_batch(columns, schema=self._rows))
        dialogues = [json.dumps(unit.dialogue.as_row, ensure_ascii=False) if unit.dialogue else None for unit in units]
        columns = [[u.digest for u in units], [u.path for u in units], [u.line for u in units], dialogues]
        self._unit_file.write_batch(pa.record_batch(columns, schema=self._units))

    def close(self, ledger: Ledger) -> None:
        """Close the files, and write the ledger last, which marks the store as complete."""
        self._row_file.close()
        self._unit_file.close()
        sizes = {name: (self._folder / name).stat().st_size for name in _TABLE_FILES}
        text = json.dumps({"sizes": sizes, "ledger": ledger.as_dict()}, ensure_ascii=False)
        (self._folder / LEDGER_FILE).write_text(text, encoding="utf-8")


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
                (self.folder / name).stat().st_size == sizes[name] for name in _TABLE_FILES
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return False

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        """Return the sizes of the files and the ledger."""
        manifest: dict[str, Any] = json.loads((self.folder / LEDGER_FILE).read_text(encoding="utf-8"))
        return manifest

    def open_rows(self) -> "Dataset":
        """Open the rows, with `input_ids`, `labels` (a mask) and `unit`, without reading them into memory."""
        from datasets import Dataset

        with self._convert_read_errors():
            table = Dataset.from_file(str(self.folder / ROWS_FILE))
            if table.column_names != ["input_ids", "labels", "unit"] or len(table) != self.ledger.rows:
                raise ValueError("its columns or its number of rows differ from the ledger")
            return table

    @cached_property
    def digests(self) -> "np.ndarray[Any, Any]":
        """Return the digests of the units, (units,) int64."""
        import numpy as np

        parts = [batch.column("digest").to_numpy() for batch in self._batches(["digest"])]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def read_units(self, numbers: "np.ndarray[Any, Any]") -> Iterator[tuple[int, str, int, dict[str, Any] | None]]:
        """Yield number, path, line and dialogue (a row with `messages`, or None) of units; `numbers` are sorted."""
        begin = 0
        for batch in self._batches(["path", "line", "dialogue"]):
            end = begin + batch.num_rows
            indices = numbers[(numbers >= begin) & (numbers < end)] - begin
            for index in indices.tolist():
                path, line, row = (batch.column(name)[index].as_py() for name in ("path", "line", "dialogue"))
                yield begin + index, path, line, json.loads(row) if row else None
            begin = end

    def find_lines(self, locations: Collection[tuple[str, int]]) -> list[int]:
        """Return the numbers of the units at some files and lines."""
        import numpy as np

        lines, numbers, begin = [line for _, line in locations], [], 0
        for batch in self._batches(["path", "line"]):
            paths = batch.column("path")
            line_of = batch.column("line").to_numpy()
            candidates = np.flatnonzero(np.isin(line_of, lines)).tolist()
            numbers += [begin + i for i in candidates if (paths[i].as_py(), int(line_of[i])) in locations]
            begin += batch.num_rows
        return numbers

    def _batches(self, names: list[str]) -> "Iterator[pa.RecordBatch]":
        """Yield the batches of units with some columns."""
        import pyarrow as pa

        with self._convert_read_errors(), pa.memory_map(str(self.folder / UNITS_FILE)) as file:
            fields = pa.ipc.open_stream(file).schema.names
            file.seek(0)
            options = pa.ipc.IpcReadOptions(included_fields=[fields.index(name) for name in names])
            yield from pa.ipc.open_stream(file, options=options)

    @contextmanager
    def _convert_read_errors(self) -> Iterator[None]:
        """Raise IntegrityError in place of the errors of Arrow on damaged files."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            raise IntegrityError(f"{self.folder} is damaged ({error}). Fix: delete it.") from error
