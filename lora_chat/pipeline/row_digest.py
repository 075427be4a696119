"""The digest of the training rows, by which a run is recognised when it is resumed."""

import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_chat.data.dataset import DialogueSet
from lora_chat.data.storage.results import find_or_compute

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_BATCH_ROWS = 4096
"""Rows that are hashed together. The digests of all runs depend on it."""
_MIN_KEPT_ROWS = 200_000
"""Fewest rows whose digest is kept. The rows of smaller sets are read at each start, which also finds damaged ones."""
_MAX_SPAN = 16
"""Largest span of a batch in a table, in batches, that is read as a whole."""
_VERSION = "1"


def digest_rows(dialogues: DialogueSet) -> str:
    """Return the SHA-256 of the token ids and labels of all rows in their order."""
    if len(dialogues.rows) < _MIN_KEPT_ROWS or dialogues.block_count or not dialogues.repeated_units:
        return _compute_digest(dialogues)
    stores = [store for store, _ in dialogues.units_by_store]
    selection = list(zip(stores, dialogues.repeated_units, strict=True))
    content = find_or_compute(selection, "rows", _VERSION, 64, lambda: _compute_digest(dialogues).encode())
    text = content.decode("ascii", errors="replace")
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else _compute_digest(dialogues)


def _compute_digest(dialogues: DialogueSet) -> str:
    """Read and hash all rows."""
    import numpy as np

    digest = hashlib.sha256()
    for batch in _read_batches(dialogues.rows.dataset):
        for name in ("input_ids", "labels"):
            column = batch.column(name).combine_chunks()
            lengths = column.value_lengths().to_numpy().astype(np.int64)
            digest.update(lengths.tobytes())
            digest.update(column.flatten().to_numpy(zero_copy_only=False).astype(np.int32).tobytes())
    return digest.hexdigest()


def _read_batches(dataset: "Dataset") -> "Iterator[pa.Table]":
    """Yield the rows in batches. Rows that are close to each other are read together, not one by one."""
    import numpy as np
    import pyarrow as pa

    arrow = dataset.with_format("arrow")
    if dataset._indices is None:
        yield from arrow.iter(batch_size=_BATCH_ROWS)
        return
    indices: np.ndarray[Any, Any] = np.asarray(dataset._indices.column(0)).astype(np.int64)
    for begin in range(0, len(indices), _BATCH_ROWS):
        wanted = indices[begin : begin + _BATCH_ROWS]
        first, count = int(wanted.min()), int(wanted.max()) - int(wanted.min()) + 1
        if count > _MAX_SPAN * _BATCH_ROWS:
            yield arrow[begin : begin + _BATCH_ROWS]
        else:
            span = dataset.data.fast_slice(first, count)
            yield span.combine_chunks().take(pa.array(wanted - first))
