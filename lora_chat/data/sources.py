"""The sources that a recipe names -> stores, checked; faults of any of them end here."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.data import DataSection, SourceSection
from lora_chat.data.parsing.rows import (
    ReadingOptions,
    Tally,
    check_going_on,
    check_tally,
    read_chunk,
    read_chunks,
    shown_paths,
)
from lora_chat.data.reading.files import find_files
from lora_chat.data.reading.hub_dataset import find_hub_files
from lora_chat.data.storage.cache import open_store
from lora_chat.data.storage.encode_chunk import Change, EncodingOptions
from lora_chat.data.storage.ledger import Ledger, total
from lora_chat.data.storage.store import Store
from lora_chat.errors import DataError
from lora_chat.system.sanitize import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SECONDS_BETWEEN_LINES = 5.0
_SHOWN = 5


@dataclass(frozen=True)
class FoundSource:
    """A source whose files are on this machine."""

    name: str
    paths: tuple[Path, ...]
    section: SourceSection

    @property
    def reading(self) -> ReadingOptions:
        """How its rows are read."""
        columns = self.section.columns.model_dump(exclude_none=True) if self.section.columns else {}
        return ReadingOptions(self.section.format, columns, self.section.turns == "last")


@dataclass(frozen=True)
class OpenedSource:
    """A source that is encoded."""

    found: FoundSource
    store: Store

    @property
    def weight(self) -> float:
        """How often its dialogues are seen in an epoch."""
        return self.found.section.weight


def find_sources(sections: Sequence[SourceSection], notice: Callable[[str], None]) -> tuple[FoundSource, ...]:
    """The files of every source; raises DataError for one that leads to none."""
    return tuple(_find(section, notice) for section in sections)


def _find(section: SourceSection, notice: Callable[[str], None]) -> FoundSource:
    if section.hub:
        files = find_hub_files(section.hub, section.split, section.subset, section.revision, notice)
        parts = [section.hub, *([section.subset] if section.subset else []), section.split]
        return FoundSource(f"{' '.join(parts)} at {files.commit[:12]}", files.paths, section)
    paths = find_files(section.path or ())
    return FoundSource(shown_paths(paths), paths, section)


def check_sources(sources: Sequence[FoundSource], skip_bad: int, clean: Callable[[str], str]) -> None:
    """Read all without encoding; raises DataError if too much is faulty. `clean` is applied to what it shows."""
    tally = Tally()
    for source in sources:
        for chunk in read_chunks(source.paths, source.reading):
            tally.add(read_chunk(chunk, source.reading, clean)[1])
            check_going_on(source.name, tally, skip_bad)
    if sources:
        check_tally(_names(sources), tally, skip_bad)


def open_sources(
    sources: Sequence[FoundSource],
    data: DataSection,
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Collection[int],
    positions: int | None,
    notice: Callable[[str], None],
    change: Change | None = None,
) -> tuple[OpenedSource, ...]:
    """Encode sources, or find them encoded; raises DataError naming file and line of the first faults."""
    if not sources:
        return ()
    limit = min(data.max_length, positions or data.max_length)
    opened = []
    for source in sources:
        store = open_store(
            source.paths,
            tokenizer,
            stop_ids,
            EncodingOptions(source.reading, limit, data.over_long, change),
            workers=None if data.workers == "auto" else data.workers,
            seen=_watched(source.name, data.skip_bad, notice),
        )
        opened.append(OpenedSource(source, store))
    whole = total([source.store.ledger for source in opened])
    check_tally(_names(sources), _as_read(whole), data.skip_bad)
    if whole.dropped and (data.over_long == "refuse" or not whole.dialogues):
        raise DataError(_too_long(whole, limit, positions))
    return tuple(opened)


def _as_read(ledger: Ledger) -> Tally:
    """Without what is too long, which has a message of its own."""
    accepted = ledger.accepted + ledger.dropped
    return Tally(ledger.lines, accepted, ledger.blank, ledger.refused, ledger.broken_off, ledger.refusals)


def _names(sources: Sequence[FoundSource]) -> str:
    return shown_paths([path for source in sources for path in source.paths])


def _watched(name: str, skip_bad: int, notice: Callable[[str], None]) -> Callable[[Ledger], None]:
    """Report how far it is every few seconds; stop where the rest could not make it usable."""
    last = time.monotonic()

    def seen(ledger: Ledger) -> None:
        nonlocal last
        check_going_on(name, _as_read(ledger), skip_bad)
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            notice(f"Encoding {visible(name)}: {ledger.lines:,} lines, {ledger.tokens:,} tokens")

    return seen


def _too_long(ledger: Ledger, limit: int, positions: int | None) -> str:
    kept, long, longest = ledger.dialogues, ledger.dropped, ledger.longest_refused
    lines = ledger.over_long[:_SHOWN]
    more = [f"... and {long - len(lines)} more"] if long > len(lines) else []
    share = "All" if not kept else f"{long} of {long + kept}"
    drop = "leave them out with --set data.over_long=drop, or cut them behind a reply with --set data.over_long=cut"
    if positions and longest > positions:
        name = "the base's positions"
        advice = f"{drop[0].upper()}{drop[1:]}, or take" if kept else "Shorten them, or take"
        advice += " a base that reads more."
    else:
        name = "data.max_length"
        advice = f"Raise it (--set data.max_length={longest})" + (f", or {drop}." if kept else ".")
    return "\n".join([f"{share} dialogues are longer than {name}, {limit} tokens:", *lines, *more, advice])
