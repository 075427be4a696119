"""Encode files that are read over a network in parts, so that an interrupted start continues at the last one.

Each part is a store with the position after its last chunk. When all rows are encoded, the parts become one store.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from lora_chat.data.parsing.read_position import ReadPosition
from lora_chat.data.parsing.rows import read_chunks
from lora_chat.data.reading.streamed_file import DataFile
from lora_chat.data.storage.block_packer import BlockPacker
from lora_chat.data.storage.build import encode_all
from lora_chat.data.storage.encode_chunk import ChunkEncoder, EncodedChunk
from lora_chat.data.storage.ledger import Ledger, sum_ledgers
from lora_chat.data.storage.store import DialogueStore
from lora_chat.data.storage.store_writer import StoreWriter, make_units
from lora_chat.errors import LoraChatError
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.bounded_files import LARGE_FILE_BYTES, read_json_object

_POSITION_FILE = "position.json"
_PART_LINES, _PART_SECONDS = 50_000, 60.0
"""Lines and seconds after which a part ends."""
_POSITION = TypeAdapter(ReadPosition)


@dataclass
class _Parts:
    """The parts that are encoded, and everything that the next one depends on."""

    folder: Path
    blocks: BlockPacker
    stores: list[DialogueStore] = field(default_factory=list)
    position: ReadPosition | None = None

    def read(self) -> None:
        """Find the parts of an earlier start, up to the first one that is damaged or missing."""
        while True:
            store = DialogueStore(self._next_folder)
            try:
                state = read_json_object(store.folder / _POSITION_FILE, LARGE_FILE_BYTES)
                position = _POSITION.validate_python(state["position"])
                if not store.is_complete or not position.is_valid:
                    return
                self.blocks.restore(state["blocks"])
            except (OSError, ValueError, TypeError, KeyError, LoraChatError):
                return
            self.position = position
            self.stores.append(store)

    def write(self, encoded: Iterator[EncodedChunk], add: Callable[[EncodedChunk], None]) -> bool:
        """Encode and write the next part. Return whether there may be another one.

        After an error or a signal while a chunk is read, the chunks before it are written, then it is raised.
        """
        error: BaseException | None = None
        chunk, started, ledger, to = None, time.monotonic(), Ledger(), self._next_folder
        with atomic_folder(to, "the encoded dialogues") as folder:
            writer = StoreWriter(folder)
            while ledger.lines < _PART_LINES and time.monotonic() - started < _PART_SECONDS:
                try:
                    chunk = next(encoded, None)
                except BaseException as caught:
                    if not ledger.lines:  # there is nothing to keep
                        raise
                    error = caught
                    break
                if chunk is None:
                    break
                ledger.add(chunk.ledger)
                writer.write(make_units(chunk) + self.blocks.add(chunk))
                self.position = chunk.end
                add(chunk)
            ledger.add(self.blocks.take_ledger())
            writer.close(ledger)
            state = {"position": self.position and asdict(self.position), "blocks": self.blocks.state}
            (folder / _POSITION_FILE).write_text(json.dumps(state), encoding="utf-8")
        self.stores.append(DialogueStore(to))
        if error is not None:
            raise error
        return chunk is not None

    @property
    def _next_folder(self) -> Path:
        """Return the folder of the next part."""
        return self.folder / f"part-{len(self.stores):06}"


def build_in_parts(
    folder: Path,
    parts_folder: Path,
    files: Sequence[DataFile],
    encoder: ChunkEncoder,
    workers: int | None = None,
    on_progress: Callable[[Ledger], None] = lambda _: None,
) -> Ledger:
    """Read and encode files into an empty folder; `parts_folder` has the parts of an earlier start, if there was one.

    `on_progress` gets the ledger after each chunk. The caller deletes the parts.
    """
    parts = _Parts(parts_folder, BlockPacker(encoder.options.max_length))
    parts.read()
    progress = sum_ledgers([store.ledger for store in parts.stores])

    def add(chunk: EncodedChunk) -> None:
        progress.add(chunk.ledger)
        on_progress(progress)

    chunks = read_chunks(files, encoder.options.reading_options, parts.position)
    encoded = encode_all(chunks, encoder, workers)
    while parts.write(encoded, add):
        pass
    writer = StoreWriter(folder)
    for store in parts.stores:
        writer.append(store)
    writer.write(parts.blocks.flush())
    ledger = sum_ledgers([*(store.ledger for store in parts.stores), parts.blocks.take_ledger()])
    writer.close(ledger)
    return ledger
