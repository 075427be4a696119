"""Encode files into a store, in several processes; memory use does not depend on the size of the files."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from pathlib import Path

from lora_chat.data.parsing.rows import RowChunk, read_chunks
from lora_chat.data.reading.streamed_file import DataFile
from lora_chat.data.storage.block_packer import BlockPacker
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodedChunk
from lora_chat.data.storage.ledger import Ledger
from lora_chat.data.storage.store_writer import StoreWriter, make_units
from lora_chat.errors import OutOfMemoryError
from lora_chat.system.activity import note_activity
from lora_chat.system.worker import pool_context
from lora_chat.system.worker_start import exit_with_parent

_MIN_PARALLEL_CHUNKS = 4
"""Fewest chunks for several processes; fewer are encoded before other processes would start."""
_encoder: ChunkEncoder | None = None


def build_store(
    folder: Path,
    paths: Sequence[DataFile],
    encoder: ChunkEncoder,
    workers: int | None = None,
    on_progress: Callable[[Ledger], None] = lambda _: None,
) -> Ledger:
    """Read and encode files into an empty folder; `on_progress` gets the ledger after each chunk."""
    writer = StoreWriter(folder)
    ledger = Ledger()
    blocks = BlockPacker(encoder.options.max_length)
    for encoded in encode_all(read_chunks(paths, encoder.options.reading_options), encoder, workers):
        ledger.add(encoded.ledger)
        writer.write(make_units(encoded) + blocks.add(encoded))
        note_activity()
        on_progress(ledger)
    writer.write(blocks.flush())
    ledger.add(blocks.take_ledger())
    writer.close(ledger)
    return ledger


def encode_all(chunks: Iterator[RowChunk], encoder: ChunkEncoder, workers: int | None) -> Iterator[EncodedChunk]:
    """Yield the encoded chunks in order; few chunks, or one worker, need no other process."""
    workers = workers or _count_processors()
    first = list(islice(chunks, _MIN_PARALLEL_CHUNKS))
    # A fork shares the tokenizer; without fork, every process would load it again.
    context = pool_context()
    if workers == 1 or len(first) < _MIN_PARALLEL_CHUNKS or context is None:
        yield from map(encoder, chain(first, chunks))
        return
    with ProcessPoolExecutor(workers, context, _initialize_worker, (encoder,)) as pool:
        try:
            yield from _map_in_order(pool, chain(first, chunks), 2 * workers)
        except BrokenProcessPool as error:
            raise OutOfMemoryError(
                f"One of {workers} processes that encode the dialogues was killed, probably for lack of memory. "
                "Fix: --set data.workers=1."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _map_in_order(pool: ProcessPoolExecutor, chunks: Iterable[RowChunk], ahead: int) -> Iterator[EncodedChunk]:
    """Yield the encoded chunks in order, with at most `ahead` chunks read but not yet encoded."""
    pending: deque[Future[EncodedChunk]] = deque()
    for chunk in chunks:
        pending.append(pool.submit(_encode_in_worker, chunk))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _initialize_worker(encoder: ChunkEncoder) -> None:
    """Set the encoder, and ignore Ctrl-C, which the parent handles for all processes. End with the parent."""
    global _encoder
    exit_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _encoder = encoder


def _encode_in_worker(chunk: RowChunk) -> EncodedChunk:
    """Encode a chunk with the encoder of this process."""
    assert _encoder is not None
    return _encoder(chunk)


def _count_processors() -> int:
    """Count the processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
