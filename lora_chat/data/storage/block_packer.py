"""Pack plain text into blocks of one length."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from lora_chat.data.encoding.encode import EncodedDialogue
from lora_chat.data.storage.encode_chunk import EncodedChunk
from lora_chat.data.storage.ledger import Ledger
from lora_chat.data.storage.store_writer import StoreUnit


class BlockPacker:
    """Packer of plain text into blocks of one length; the last block is shorter."""

    def __init__(self, length: int) -> None:
        self._ledger = Ledger()
        self._length = length
        self._buffer: list[int] = []
        self._location = ("", 0)

    @property
    def state(self) -> dict[str, object]:
        """Return everything on which the next blocks depend, as JSON data."""
        return {"ids": self._buffer, "location": list(self._location)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of an earlier packer."""
        path, line = state["location"]
        self._buffer, self._location = [int(token) for token in state["ids"]], (str(path), int(line))

    def take_ledger(self) -> Ledger:
        """Return the counts of the blocks since the last call."""
        ledger, self._ledger = self._ledger, Ledger()
        return ledger

    def add(self, encoded: EncodedChunk) -> list[StoreUnit]:
        """Add pieces of text, and return the blocks that are now full."""
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
        """Return the last block, unless it has a single token, from which nothing can be learned."""
        return [self._make_unit(self._buffer)] if len(self._buffer) > 1 else []

    def _make_unit(self, ids: list[int]) -> StoreUnit:
        """Return a block as a unit, and count it."""
        digest = blake2b(str(ids).encode(), digest_size=8).digest()
        n = len(ids)
        self._ledger.add(
            Ledger(
                dialogues=1,
                rows=1,
                tokens=n,
                supervised_tokens=n,
                dialogue_tokens=n,
                longest=n,
                roles={"text": [n, n]},
            )
        )
        row = EncodedDialogue(ids, [*ids])
        return StoreUnit(None, (row,), *self._location, int.from_bytes(digest, "big", signed=True))
