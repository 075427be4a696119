"""Cache of stores: each is found by the digest of all its inputs; the least recently used are deleted."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.data.encoding.control_tokens import read_kept_tokens
from lora_chat.data.encoding.ordinary_tokens import read_token_rule
from lora_chat.data.encoding.thinking_switch import thinking_key
from lora_chat.data.reading.size_limits import check_regular_file
from lora_chat.data.reading.streamed_file import DataFile, StreamedFile, find_streamed
from lora_chat.data.storage.build import build_store
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodingOptions
from lora_chat.data.storage.ledger import Ledger
from lora_chat.data.storage.parts import build_in_parts
from lora_chat.data.storage.store import DialogueStore
from lora_chat.errors import DataError
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.file_lock import acquire_lock
from lora_chat.system.hashing import digest_code, digest_file
from lora_chat.system.regular_files import open_regular_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_MAX_CACHE_BYTES = 20 * 10**9
_DAY_SECONDS = 86400.0
_PARTS_SUFFIX, _MAX_PARTS_SECONDS = "-parts", 7 * _DAY_SECONDS
"""End of the name of a folder with the parts of an interrupted build, and how long it is kept."""
_PACKAGE = Path(__file__).parents[2]
_SYSTEM_MODULES = ("hub_ranges.py", "strict_json.py", "bounded_files.py", "sanitize.py")
CODE_PATHS = (
    _PACKAGE / "data",
    _PACKAGE / "config" / "columns.py",
    *(_PACKAGE / "system" / name for name in _SYSTEM_MODULES),
)
"""All code that decides how a dialogue is encoded and counted. A test checks that it is complete."""


def open_store(
    paths: Sequence[DataFile],
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Collection[int],
    options: EncodingOptions,
    *,
    workers: int | None = None,
    on_progress: Callable[[Ledger], None] = lambda _: None,
) -> DialogueStore:
    """Return the store of these files, built unless these bytes, tokenizer, template and settings are cached."""
    target = _cache_folder() / _cache_key(paths, tokenizer, stop_ids, options)
    if DialogueStore(target).is_complete:
        os.utime(target)
        return DialogueStore(target)
    encoder = ChunkEncoder(tokenizer, stop_ids, options)
    if find_streamed(paths):
        _build_from_network(target, paths, encoder, workers, on_progress)
    else:
        try:
            with atomic_folder(target, "the encoded dialogues") as folder:
                build_store(folder, paths, encoder, workers, on_progress)
        except OSError:
            if not DialogueStore(target).is_complete:  # otherwise another process has just built it
                raise
    _prune(keep=target)
    return DialogueStore(target)


def _build_from_network(
    target: Path,
    files: Sequence[DataFile],
    encoder: ChunkEncoder,
    workers: int | None,
    on_progress: Callable[[Ledger], None],
) -> None:
    """Build a store of files that are streamed, from the parts of an earlier start on. Only one process does it."""
    parts = target.parent / f".{target.name}{_PARTS_SUFFIX}"
    parts.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = open_regular_file(parts / "lock", os.O_RDWR | os.O_CREAT)
    try:
        if not acquire_lock(handle, wait=False):
            logger.info("Waiting for another process that encodes the same data")
            acquire_lock(handle, wait=True)
        if not DialogueStore(target).is_complete:
            with atomic_folder(target, "the encoded dialogues") as folder:
                build_in_parts(folder, parts, files, encoder, workers, on_progress)
        shutil.rmtree(parts, ignore_errors=True)
    finally:
        os.close(handle)


def _cache_folder() -> Path:
    """Return the folder of all cached stores."""
    return cache_dir("dialogues")


def _cache_key(
    paths: Sequence[DataFile],
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Collection[int],
    options: EncodingOptions,
) -> str:
    """Return the digest of everything that decides the content of a store."""
    template = str(tokenizer.chat_template)
    parts: dict[str, object] = {
        "files": [(str(path), _digest_data_file(path)) for path in paths],
        "tokenizer": _digest_tokenizer(tokenizer),
        "template": template,
        "today": str(date.today()) if "strftime_now" in template else None,
        "stop_ids": sorted(stop_ids),
        "reading": asdict(options.reading_options),
        "encoding": [options.max_length, options.over_long, options.transform.cache_key if options.transform else None],
        "code": digest_code(*CODE_PATHS),
        "versions": [metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def _digest_data_file(path: DataFile) -> str:
    """Return the digest of a data file; raises DataError if it is not a readable regular file."""
    if not isinstance(path, Path):
        return path.content_key if isinstance(path, StreamedFile) else str(path)
    try:
        check_regular_file(path)  # a pipe or a device may have no end
        return digest_file(path)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def _digest_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the digest of a tokenizer's vocabulary, rules and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    special_tokens = json.dumps(
        [
            tokenizer.special_tokens_map,
            sorted(tokenizer.added_tokens_encoder.items()),
            read_kept_tokens(tokenizer),
            read_token_rule(tokenizer),
            thinking_key(tokenizer),
        ],
        default=str,
    )
    return hashlib.sha256((rules + special_tokens).encode()).hexdigest()


def _prune(keep: Path) -> None:
    """Delete the least recently used stores while all of them exceed the limit, and abandoned unfinished ones."""
    free_bytes = _MAX_CACHE_BYTES - _folder_bytes(keep)
    for store in sorted(keep.parent.iterdir(), key=_idle_seconds):
        if store.name.startswith("."):  # being written, or abandoned by a process that was killed
            limit = _MAX_PARTS_SECONDS if store.name.endswith(_PARTS_SUFFIX) else _DAY_SECONDS
            if _idle_seconds(store) > limit:
                shutil.rmtree(store, ignore_errors=True)
        elif store != keep:
            free_bytes -= _folder_bytes(store)
            if free_bytes < 0:
                shutil.rmtree(store, ignore_errors=True)


def _idle_seconds(folder: Path) -> float:
    """Return the seconds since a store was last used."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:  # deleted by another process
        return 0


def _folder_bytes(folder: Path) -> int:
    """Return the total size of the files in a folder."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except FileNotFoundError:
        return 0
