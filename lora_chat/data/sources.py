"""Find, check and encode the sources of a recipe; faults of all sources are reported here."""

import json
import logging
import shlex
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_chat.config.data import DataSection, SourceSection, as_key_names
from lora_chat.config.system_message import SystemSection
from lora_chat.data.parsing.line_counts import LineCounts, check_fault_limit, check_line_counts, summarize_paths
from lora_chat.data.parsing.rendered_chats import check_rendered_chats
from lora_chat.data.parsing.rows import ReadingOptions, parse_chunk, read_chunks
from lora_chat.data.reading.find_files import choose_files
from lora_chat.data.reading.folders import DEFAULT_SPLIT, SplitChoice
from lora_chat.data.reading.hub_dataset import find_hub_files
from lora_chat.data.reading.streamed_file import DataFile, find_streamed
from lora_chat.data.storage.cache import open_store
from lora_chat.data.storage.encode_chunk import DialogueTransform, EncodingOptions
from lora_chat.data.storage.ledger import Ledger, sum_ledgers
from lora_chat.data.storage.store import DialogueStore
from lora_chat.errors import DataError
from lora_chat.system.sanitize import sanitize_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_SECONDS = 5.0
_MAX_SHOWN_DIALOGUES = 5


@dataclass(frozen=True)
class LocalSource:
    """A source with its files on this machine."""

    name: str
    paths: tuple[DataFile, ...]
    section: SourceSection
    notes: tuple[str, ...] = ()
    """Sentences on files and splits of its folders that are not used."""

    @property
    def reading_options(self) -> ReadingOptions:
        """Return the options for reading its rows."""
        columns = self.section.columns.model_dump(exclude_none=True) if self.section.columns else {}
        system = self.section.system
        return ReadingOptions(
            data_format=self.section.format,
            columns=columns,
            last_turn_only=self.section.turns == "last",
            loss_on_prompts=self.section.loss == "all",
            turn_order=self.section.turn_order or "refuse",
            system=system.text if isinstance(system, SystemSection) else system,
            replaces_system=isinstance(system, SystemSection) and system.replace,
            limit=self.section.limit,
            drop_unwanted=bool(self.section.drop_unwanted),
            ignored_keys=as_key_names(self.section.ignore_keys),
        )


@dataclass(frozen=True)
class EncodedSource:
    """A source with its encoded dialogues."""

    local_source: LocalSource
    store: DialogueStore

    @property
    def weight(self) -> float:
        """Return how many times each dialogue is used in an epoch."""
        return self.local_source.section.weight


def find_sources(
    sections: Sequence[SourceSection],
    folder_split: str = DEFAULT_SPLIT,
    *,
    offered_splits: Sequence[str] = (),
    streaming: bool = False,
) -> tuple[LocalSource, ...]:
    """Return the sources with their files; raises DataError for a source without files.

    `folder_split` is the split of folders if a source names none; empty refuses folders with several. A note offers the
    other splits of a folder that are in `offered_splits`. With `streaming`, files of the hub are not downloaded.
    """
    return tuple(_find_source(section, folder_split, offered_splits, streaming=streaming) for section in sections)


def _find_source(
    section: SourceSection, folder_split: str, offered_splits: Sequence[str], *, streaming: bool
) -> LocalSource:
    """Find the files of one source, downloaded if they are on the hub."""
    if section.hub:
        files = find_hub_files(section.hub, section.split, section.subset, section.revision, streaming=streaming)
        parts = [section.hub, *([section.subset] if section.subset else []), section.split]
        return LocalSource(f"{' '.join(parts)} at {files.commit[:12]}", files.paths, section)
    is_default = section.split == DEFAULT_SPLIT
    choice = SplitChoice(folder_split if is_default else section.split, section.subset, is_default)
    chosen = choose_files(section.path or (), choice, plain_text=section.format == "text")
    notes = chosen.notes
    for split in offered_splits if isinstance(section.path, str) else ():
        if split in chosen.other_splits:
            setting = f"data.{split}={{path: {json.dumps(section.path, ensure_ascii=False)}, split: {split}}}"
            notes = (*notes, f"to measure on its {split} split, add --set {shlex.quote(setting)}")
    return LocalSource(summarize_paths(chosen.paths), chosen.paths, section, notes)


def check_sources(sources: Sequence[LocalSource], data: DataSection, clean: Callable[[str], str]) -> None:
    """Parse all rows without encoding; raises DataError for too many faults, whose texts `clean` redacts.

    Files that are streamed are left out, because they would be transferred twice.
    """
    sources = [source for source in sources if not find_streamed(source.paths)]
    counts = LineCounts()
    source_counts = []
    for source in sources:
        source_counts.append(LineCounts())
        for chunk in read_chunks(source.paths, source.reading_options):
            chunk_counts = parse_chunk(chunk, source.reading_options, clean)[1]
            source_counts[-1].add(chunk_counts)
            counts.add(chunk_counts)
            check_fault_limit(source.name, counts, data.skip_bad)
    if sources:
        check_line_counts(_format_paths(sources), counts, data.skip_bad)
    _check_contents(sources, source_counts, data)


def _check_contents(sources: Sequence[LocalSource], counts: Sequence[LineCounts], data: DataSection) -> None:
    """Raise DataError if the accepted rows of a source are of a kind that the recipe does not want."""
    for source, source_counts in zip(sources, counts, strict=True):
        if data.rendered_chats == "refuse":
            check_rendered_chats(source.name, source_counts.notes)


def open_sources(
    sources: Sequence[LocalSource],
    data: DataSection,
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Collection[int],
    max_positions: int | None,
    transform: DialogueTransform | None = None,
) -> tuple[EncodedSource, ...]:
    """Encode sources or open their cached stores; raises DataError with file and line of the first faults."""
    if not sources:
        return ()
    limit = min(data.max_length, max_positions or data.max_length)
    encoded = []
    for source in sources:
        store = open_store(
            source.paths,
            tokenizer,
            stop_ids,
            EncodingOptions(source.reading_options, limit, data.over_long, transform),
            workers=None if data.workers == "auto" else data.workers,
            on_progress=_make_progress_reporter(source.name, data.skip_bad),
        )
        encoded.append(EncodedSource(source, store))
    total = sum_ledgers([source.store.ledger for source in encoded])
    check_line_counts(_format_paths(sources), _to_line_counts(total), data.skip_bad)
    _check_contents(sources, [source.store.ledger for source in encoded], data)
    if total.dropped and (data.over_long == "refuse" or not total.dialogues):
        raise DataError(_too_long_message(total, limit, max_positions))
    return tuple(encoded)


def _to_line_counts(ledger: Ledger) -> LineCounts:
    """Return the line counts with overlong dialogues as accepted, because they have a separate message."""
    accepted = ledger.accepted + ledger.dropped
    return LineCounts(
        lines=ledger.lines,
        accepted=accepted,
        blank=ledger.blank,
        refused=ledger.refused,
        unwanted=ledger.unwanted,
        broken_off=ledger.broken_off,
        explained=ledger.explained,
        refusals=ledger.refusals,
    )


def _format_paths(sources: Sequence[LocalSource]) -> str:
    """Format the first path of all sources and the number of the others."""
    return summarize_paths([path for source in sources for path in source.paths])


def _make_progress_reporter(name: str, skip_bad: int) -> Callable[[Ledger], None]:
    """Return a function that logs progress every few seconds and raises DataError for too many faults."""
    last = time.monotonic()

    def report(ledger: Ledger) -> None:
        nonlocal last
        check_fault_limit(name, _to_line_counts(ledger), skip_bad)
        if time.monotonic() - last >= _PROGRESS_INTERVAL_SECONDS:
            last = time.monotonic()
            logger.info(f"Encoding {sanitize_line(name)}: {ledger.lines:,} lines, {ledger.tokens:,} tokens")

    return report


def _too_long_message(ledger: Ledger, limit: int, max_positions: int | None) -> str:
    """Return the message for dialogues above the limit, with the settings that help."""
    fitting, overlong, longest = ledger.dialogues, ledger.dropped, ledger.longest_refused
    lines = ledger.over_long[:_MAX_SHOWN_DIALOGUES]
    more = [f"... and {overlong - len(lines)} more"] if overlong > len(lines) else []
    share = "All" if not fitting else f"{overlong} of {overlong + fitting}"
    kept_part = f"{ledger.cuttable:,} of these {overlong:,} with {ledger.cuttable_replies:,} replies"
    result = f"{kept_part} ({ledger.cuttable_tokens:,} tokens)" if ledger.cuttable else f"none of these {overlong:,}"
    cut = f"cut them after a reply with --set data.over_long=cut, which keeps {result}"
    drop = "drop them with --set data.over_long=drop"
    ways = [*([drop] if fitting else []), *([cut] if fitting or ledger.cuttable else [])]
    if max_positions and longest > max_positions:
        name = "the base's positions"
        ways = [*(ways or ["shorten them"]), "use a base with more positions"]
    else:
        name = "data.max_length"
        ways = [f"raise it with --set data.max_length={longest}", *ways]
    advice = ", or ".join(ways) + "."
    return "\n".join([f"{share} dialogues are longer than {name}, {limit} tokens:", *lines, *more, f"Fix: {advice}"])
