"""How long rows are and how much of them carries loss, from their columns as they lie on disk."""

from lora_chat.dialogues.dialogue_set import EncodedRows
from lora_chat.planning.workload import Lengths


def measure_rows(rows: EncodedRows) -> Lengths:
    """Of all rows, in their order; none is read one by one."""
    import numpy as np

    parts = [_measure(chunk) for chunk in rows.dataset.data.column("labels").chunks if len(chunk)]
    tokens, trained, supervised = (np.concatenate(column) for column in zip(*parts, strict=True))
    chosen = rows.dataset._indices
    if chosen is not None:
        places = np.asarray(chosen.column(0))
        tokens, trained, supervised = tokens[places], trained[places], supervised[places]
    return Lengths(tokens, trained, supervised)


def _measure(masks: object) -> tuple[object, object, object]:
    """(rows,) three times, of a list column of which tokens carry loss."""
    import numpy as np

    offsets = np.asarray(masks.offsets)  # type: ignore[attr-defined]
    carrying = np.flatnonzero(masks.values.to_numpy(zero_copy_only=False))  # type: ignore[attr-defined]
    begins, ends = offsets[:-1], offsets[1:]
    first, after = carrying.searchsorted(begins), carrying.searchsorted(ends)
    supervised = after - first
    # A row without any is kept whole.
    last = np.append(carrying, 0)[np.maximum(after - 1, 0)]
    trained = np.where(supervised > 0, last - begins + 1, ends - begins)
    return ends - begins, trained, supervised
