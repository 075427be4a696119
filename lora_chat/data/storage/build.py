"""Files -> a store, in several processes; memory stays flat however large the files are."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path

from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.data.parsing.rows import RowChunk, read_chunks
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodedChunk
from lora_chat.data.storage.ledger import Ledger
from lora_chat.data.storage.store import StoreUnit, StoreWriter
from lora_chat.errors import OutOfMemoryError
from lora_chat.system.worker import pool_context

_MIN_PARALLEL_CHUNKS = 4
"""So few chunks are encoded sooner than other processes are there."""
_encoder: ChunkEncoder | None = None


def build_store(
    folder: Path,
    paths: Sequence[Path],
    encoder: ChunkEncoder,
    workers: int | None = None,
    on_progress: Callable[[Ledger], None] = lambda _: None,
) -> Ledger:
    """Read and encode files into an empty folder; `on_progress` is told of the account as it grows."""
    writer = StoreWriter(folder)
    ledger = Ledger()
    blocks = _BlockPacker(encoder.options.max_length)
    for encoded in _encode_all(
        read_chunks(paths, encoder.options.reading_options), encoder, workers or _count_processors()
    ):
        ledger.add(encoded.ledger)
        units = [
            StoreUnit(dialogue, rows, dialogue.path, dialogue.line, dialogue.digest)
            for dialogue, rows in encoded.dialogues
        ]
        writer.write(units + blocks.add(encoded))
        on_progress(ledger)
    writer.write(blocks.flush())
    ledger.add(blocks.ledger)
    writer.close(ledger)
    return ledger


def _encode_all(chunks: Iterator[RowChunk], encoder: ChunkEncoder, workers: int) -> Iterator[EncodedChunk]:
    """In order; in this process where there are few chunks or workers."""
    first = list(islice(chunks, _MIN_PARALLEL_CHUNKS))
    # A fork has the tokenizer already; elsewhere every process loads it anew.
    context = pool_context()
    if workers == 1 or len(first) < _MIN_PARALLEL_CHUNKS or context is None:
        yield from map(encoder, chain(first, chunks))
        return
    with ProcessPoolExecutor(workers, context, _initialize_worker, (encoder,)) as pool:
        try:
            yield from _map_in_order(pool, chain(first, chunks), 2 * workers)
        except BrokenProcessPool as error:
            raise OutOfMemoryError(
                f"One of {workers} processes that encode the dialogues was ended from outside, as happens when memory "
                "is short. Take fewer with --set data.workers=1."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _map_in_order(pool: ProcessPoolExecutor, chunks: Iterable[RowChunk], ahead: int) -> Iterator[EncodedChunk]:
    """No more chunks are read than can soon be worked on."""
    waiting: deque[Future[EncodedChunk]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(_encode_in_worker, chunk))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _initialize_worker(encoder: ChunkEncoder) -> None:
    """Ctrl-C reaches every process of a terminal; the first one decides."""
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _encoder = encoder


def _encode_in_worker(chunk: RowChunk) -> EncodedChunk:
    assert _encoder is not None
    return _encoder(chunk)


def _count_processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


class _BlockPacker:
    """Plain text as blocks of one length; the last one is shorter."""

    def __init__(self, length: int) -> None:
        self.ledger = Ledger()
        self._length = length
        self._buffer: list[int] = []
        self._location = ("", 0)

    def add(self, encoded: EncodedChunk) -> list[StoreUnit]:
        """The blocks that are full with these pieces."""
        units = []
        for line, ids in encoded.text:
            if not self._buffer:
                self._location = (encoded.path, line)
            self._buffer += ids
            full = len(self._buffer) - len(self._buffer) % self._length
            for begin in range(0, full, self._length):
                units.append(self._make_unit(self._buffer[begin : begin + self._length]))
                self._location = (encoded.path, line)
            self._buffer = self._buffer[full:]
        return units

    def flush(self) -> list[StoreUnit]:
        """What is left at the end; one token alone teaches nothing."""
        return [self._make_unit(self._buffer)] if len(self._buffer) > 1 else []

    def _make_unit(self, ids: list[int]) -> StoreUnit:
        digest = blake2b(str(ids).encode(), digest_size=8).digest()
        n = len(ids)
        self.ledger.add(Ledger(dialogues=1, rows=1, tokens=n, supervised_tokens=n, longest=n, roles={"text": [n, n]}))
        row = EncodedDialogue(ids, [*ids])
        return StoreUnit(None, (row,), *self._location, int.from_bytes(digest, "big", signed=True))
