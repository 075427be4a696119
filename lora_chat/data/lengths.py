"""How long rows are and how much of them carries loss, from their columns as they lie on disk."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, Any]
from lora_chat.data.dataset import EncodedRows


@dataclass(frozen=True)
class RowLengths:
    """Of rows; all (rows,)."""

    tokens: "Numbers"
    through_last_label: "Numbers"
    """Up to the last token that carries loss: what follows it the fast path leaves out."""
    supervised: "Numbers"


@dataclass(frozen=True)
class DataLengths:
    """All that memory and time need to know of the data."""

    train: RowLengths
    validation: RowLengths
    prompt_tokens: tuple[int, ...]
    """Tokens of every prompt that is answered after training."""
    max_reply_tokens: int
    """Longest reply."""
    shared_prefix: int = 0
    """Tokens that all dialogues begin with and that stand once in a micro-batch."""
    is_estimated: bool = False
    """Whether another tokenizer counted them."""


def measure_rows(rows: EncodedRows) -> RowLengths:
    """Of all rows, in their order; none is read one by one."""
    import numpy as np

    parts = [_measure_chunk(chunk) for chunk in rows.dataset.data.column("labels").chunks if len(chunk)]
    tokens, through_last_label, supervised = (np.concatenate(column) for column in zip(*parts, strict=True))
    chosen = rows.dataset._indices
    if chosen is not None:
        places = np.asarray(chosen.column(0))
        tokens, through_last_label, supervised = tokens[places], through_last_label[places], supervised[places]
    return RowLengths(tokens, through_last_label, supervised)


def _measure_chunk(masks: object) -> tuple[object, object, object]:
    """(rows,) three times, of a list column of which tokens carry loss."""
    import numpy as np

    offsets = np.asarray(masks.offsets)  # type: ignore[attr-defined]
    carrying = np.flatnonzero(masks.values.to_numpy(zero_copy_only=False))  # type: ignore[attr-defined]
    begins, ends = offsets[:-1], offsets[1:]
    first, after = carrying.searchsorted(begins), carrying.searchsorted(ends)
    supervised = after - first
    # A row without any is kept whole.
    last = np.append(carrying, 0)[np.maximum(after - 1, 0)]
    through_last_label = np.where(supervised > 0, last - begins + 1, ends - begins)
    return ends - begins, through_last_label, supervised
