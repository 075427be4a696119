"""Results that were computed from the dialogues of stores, kept in the folder of the first store."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lora_chat.data.storage.store import ROWS_FILE, DialogueStore
from lora_chat.errors import LoraChatError
from lora_chat.system.atomic_write import atomic_file
from lora_chat.system.bounded_files import read_bytes

if TYPE_CHECKING:
    import numpy as np

    Selection = Sequence[tuple[DialogueStore, np.ndarray[Any, Any]]]
    """Stores with the numbers of their units, in an order that decides the result."""

_PREFIX = "result-"
_MAX_RESULTS = 8
"""Most results in a store. Older ones are deleted."""
_DIGEST_BYTES = 32


def find_or_compute(
    selection: "Selection", kind: str, code: str, max_bytes: int, compute: Callable[[], bytes]
) -> bytes:
    """Return the kept result of a selection, or compute and keep it.

    `kind` names the result, and `code` is a digest of the code that decides it. A damaged result is computed again.
    """
    folder = selection[0][0].folder
    path = folder / f"{_PREFIX}{kind}-{_selection_key(selection, code)}"
    with suppress(OSError, LoraChatError):
        content = read_bytes(path, max_bytes + _DIGEST_BYTES)
        digest, result = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(result).digest() == digest:
            os.utime(path)
            return result
    result = compute()
    with suppress(OSError, LoraChatError):  # without it, the next start computes it again
        if folder.is_dir():  # another process may have deleted the store
            with atomic_file(path) as file:
                file.write(hashlib.sha256(result).digest() + result)
            newest_first = sorted(folder.glob(f"{_PREFIX}*"), key=lambda each: each.stat().st_mtime, reverse=True)
            for old in newest_first[_MAX_RESULTS:]:
                old.unlink()
    return result


def _selection_key(selection: "Selection", code: str) -> str:
    """Return the digest of a selection. A file of rows that was written again counts as another one."""
    parts: list[object] = [code]
    for store, units in selection:
        status = (store.folder / ROWS_FILE).stat()
        units_digest = hashlib.sha256(units.tobytes()).hexdigest()
        parts.append([store.folder.name, status.st_size, status.st_mtime_ns, units_digest])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]
