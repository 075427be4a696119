"""Stores that were built before: found again by what went into them, deleted when they grow too many."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.data.reading.size_limits import check_regular
from lora_chat.data.storage.build import build_store
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodingOptions
from lora_chat.data.storage.ledger import Ledger
from lora_chat.data.storage.store import Store
from lora_chat.errors import DataError
from lora_chat.system.atomic_write import folder_written_whole
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.hashing import digest_code, digest_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_BYTES = 20 * 10**9
_A_DAY = 86400.0
_PACKAGE = Path(__file__).parents[2]
_CODE = (_PACKAGE / "data", _PACKAGE / "system" / "strict_json.py", _PACKAGE / "system" / "bounded_files.py")
"""All code that decides what an encoded dialogue is."""


def open_store(
    paths: Sequence[Path],
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Collection[int],
    options: EncodingOptions,
    *,
    workers: int | None = None,
    seen: Callable[[Ledger], None] = lambda _: None,
) -> Store:
    """The store of these files, built if there is none for exactly these bytes, tokenizer, template and settings."""
    key = _key(paths, tokenizer, stop_ids, options)
    to = _home() / key
    if Store(to).is_whole:
        os.utime(to)
        return Store(to)
    try:
        with folder_written_whole(to, "the encoded dialogues") as folder:
            build_store(folder, paths, ChunkEncoder(tokenizer, stop_ids, options), workers, seen)
    except OSError:
        if not Store(to).is_whole:  # else another process has just built the same
            raise
    _prune(keep=to)
    return Store(to)


def _home() -> Path:
    return cache_dir("dialogues")


def _key(
    paths: Sequence[Path],
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Collection[int],
    options: EncodingOptions,
) -> str:
    template = str(tokenizer.chat_template)
    parts: dict[str, Any] = {
        "files": [(str(path), _digest(path)) for path in paths],
        "tokenizer": _tokenizer_digest(tokenizer),
        "template": template,
        "today": str(date.today()) if "strftime_now" in template else None,
        "stop_ids": sorted(stop_ids),
        "reading": asdict(options.reading),
        "encoding": [options.limit, options.over_long, options.change.name if options.change else None],
        "code": digest_code(*_CODE),
        "versions": [metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def _digest(path: Path) -> str:
    try:
        check_regular(path)  # a pipe or a device would be read without end
        return digest_file(path)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def _tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    named = json.dumps([tokenizer.special_tokens_map, sorted(tokenizer.added_tokens_encoder.items())], default=str)
    return hashlib.sha256((words + named).encode()).hexdigest()


def _prune(keep: Path) -> None:
    """Delete those that were not used for longest while all together are too large."""
    left = _MOST_BYTES - _size(keep)
    for store in sorted(keep.parent.iterdir(), key=_age):
        if store.name.startswith("."):  # being written, or left behind by a process that was killed
            if _age(store) > _A_DAY:
                shutil.rmtree(store, ignore_errors=True)
        elif store != keep:
            left -= _size(store)
            if left < 0:
                shutil.rmtree(store, ignore_errors=True)


def _age(folder: Path) -> float:
    """Seconds since it was last used."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:  # another process tidies up too
        return 0


def _size(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except FileNotFoundError:
        return 0
