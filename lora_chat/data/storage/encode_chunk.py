"""Encode a chunk of rows; the work that several processes share."""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from lora_chat.data.dialogue import Dialogue, Document
from lora_chat.data.encoding.call_tags import CallTagReader
from lora_chat.data.encoding.encode import DialogueEncoder, EncodedDialogue
from lora_chat.data.encoding.kept_tokens import TokenCounter
from lora_chat.data.encoding.tokenizer import TextTokenizer, read_bos_ids
from lora_chat.data.parsing.line_counts import MAX_SHOWN_FAULTS
from lora_chat.data.parsing.read_position import ReadPosition
from lora_chat.data.parsing.row_notes import RowNotes
from lora_chat.data.parsing.rows import ReadingOptions, RowChunk, parse_chunk
from lora_chat.data.storage.ledger import Ledger
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class DialogueTransform(Protocol):
    """A change of dialogues and texts before they are encoded; both methods count the replaced spans."""

    @property
    def cache_key(self) -> str:
        """Return a text that differs for transforms with different results."""

    def transform_dialogue(self, dialogue: Dialogue) -> tuple[Dialogue, int]:
        """Return a changed dialogue and the number of replaced spans."""

    def transform_text(self, text: str) -> tuple[str, int]:
        """Return a changed text and the number of replaced spans."""


@dataclass(frozen=True)
class EncodingOptions:
    """Options for encoding the rows of a source."""

    reading_options: ReadingOptions
    max_length: int
    """Most tokens of a dialogue, and length of a block of plain text in tokens."""
    over_long: str = "refuse"
    transform: DialogueTransform | None = None
    """Change of every dialogue before it is encoded, such as redaction."""


@dataclass(frozen=True)
class EncodedChunk:
    """The dialogues of a chunk with their rows, or the ids of its plain text."""

    ledger: Ledger
    dialogues: list[tuple[Dialogue, tuple[EncodedDialogue, ...]]]
    text: list[tuple[int, list[int]]]
    """Line and ids of each piece."""
    path: str
    end: ReadPosition | None = None
    """Position after the chunk; None if reading cannot continue there."""


class ChunkEncoder:
    """Encoder of chunks for one tokenizer."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int], options: EncodingOptions
    ) -> None:
        self.options = options
        self._encoder = DialogueEncoder(tokenizer, stop_ids)
        self._call_tags = CallTagReader(tokenizer)
        self._text_tokenizer = TextTokenizer(tokenizer)
        self._token_counter = TokenCounter(tokenizer, stop_ids)
        self._stop_ids = frozenset(stop_ids)
        self._bos_ids, self._eos_ids = read_bos_ids(tokenizer), [int(tokenizer.eos_token_id)]

    def __call__(self, chunk: RowChunk) -> EncodedChunk:
        """Parse and encode a chunk; faults are counted, not raised."""
        transform = self.options.transform
        clean = (lambda text: transform.transform_text(text)[0]) if transform else (lambda text: text)
        parsed, counts = parse_chunk(chunk, self.options.reading_options, clean)
        ledger = Ledger(files={chunk.path: chunk.data_format or "unknown"})
        ledger.add(counts)
        dialogues = [self._read_call_tags(row, ledger) for row in parsed if isinstance(row, Dialogue)]
        documents = [row for row in parsed if isinstance(row, Document)]
        encoded = self._encode(dialogues, ledger), self._encode_text(documents, ledger)
        return EncodedChunk(ledger, *encoded, chunk.path, chunk.end)

    def _read_call_tags(self, dialogue: Dialogue, ledger: Ledger) -> Dialogue:
        """Return a dialogue with its calls in tags as tool calls, if the template writes the same tags."""
        dialogue, calls = self._call_tags.read(dialogue)
        if calls:
            ledger.add_notes(RowNotes({"call_tags": calls}))
        return dialogue

    def _encode(self, dialogues: list[Dialogue], ledger: Ledger) -> list[tuple[Dialogue, tuple[EncodedDialogue, ...]]]:
        """Return the dialogues that are accepted, with their rows."""
        accepted = []
        if self.options.transform:
            changed = [self.options.transform.transform_dialogue(dialogue) for dialogue in dialogues]
            dialogues = [dialogue for dialogue, _ in changed]
            ledger.redacted += sum(count for _, count in changed)
        for dialogue, rows in zip(dialogues, self._encoder.encode(dialogues), strict=True):
            if isinstance(rows, DataError):
                ledger.accepted -= 1
                excerpt = json.dumps(dialogue.as_row, ensure_ascii=False)
                ledger.refuse(dialogue.path, dialogue.line, rows, excerpt)
                continue
            fitting = self._fit_to_limit(dialogue, rows, ledger)
            if fitting:
                accepted.append(fitting)
                _count_rows(ledger, *fitting, self._stop_ids)
                self._count_tokens(ledger, fitting[0].as_dicts)
        return accepted

    def _fit_to_limit(
        self, dialogue: Dialogue, rows: tuple[EncodedDialogue, ...], ledger: Ledger
    ) -> tuple[Dialogue, tuple[EncodedDialogue, ...]] | None:
        """Return the dialogue if it fits, or its beginning up to a reply if it may be cut; None if it is dropped."""
        limit, length = self.options.max_length, max(len(row.input_ids) for row in rows)
        if length <= limit:
            return dialogue, rows
        cut = _cut_to_limit(dialogue, rows, limit)
        if cut and self.options.over_long == "cut":
            ledger.cut += 1
            return self._recount_roles(*cut)
        if cut:
            ledger.cuttable += 1
            ledger.cuttable_replies += sum(len(row.reply_ends) for row in cut[1])
            ledger.cuttable_tokens += sum(len(row.input_ids) for row in cut[1])
        ledger.accepted -= 1
        ledger.dropped += 1
        ledger.longest_refused = max(ledger.longest_refused, length)
        if len(ledger.over_long) < MAX_SHOWN_FAULTS:
            ledger.over_long.append(f"{dialogue.path}:{dialogue.line}: {length} tokens")
        return None

    def _recount_roles(
        self, dialogue: Dialogue, rows: tuple[EncodedDialogue, ...]
    ) -> tuple[Dialogue, tuple[EncodedDialogue, ...]]:
        """Return a cut dialogue encoded again, because the tokens of each role are counted in the text."""
        (encoded,) = self._encoder.encode([dialogue])
        if isinstance(encoded, DataError) or [r.input_ids for r in encoded] != [r.input_ids for r in rows]:
            return dialogue, rows
        return dialogue, encoded

    def _count_tokens(self, ledger: Ledger, messages: object) -> None:
        """Count the added tokens in messages or in a text."""
        kept_counts, plain_counts = self._token_counter.count(messages)
        if kept_counts or plain_counts:
            ledger.add(Ledger(kept_tokens=kept_counts, plain_tokens=plain_counts))

    def _encode_text(self, documents: list[Document], ledger: Ledger) -> list[tuple[int, list[int]]]:
        """Return the line and ids of each piece; BOS and EOS mark the ends of a document, not of a piece."""
        if self.options.transform:
            changed = [self.options.transform.transform_text(document.text) for document in documents]
            documents = [replace(d, text=text) for d, (text, _) in zip(documents, changed, strict=True)]
            ledger.redacted += sum(count for _, count in changed)
        encoded = []
        for document in documents:
            try:
                ids = self._text_tokenizer.encode_plain_text(document.text)
            except DataError as error:
                ledger.accepted -= document.lines
                ledger.refuse(document.path, document.line, error, lines=document.lines)
                continue
            self._count_tokens(ledger, document.text)
            begin = self._bos_ids if document.is_first_piece else []
            encoded.append((document.line, begin + ids + ([] if document.has_next_piece else self._eos_ids)))
        return encoded


def _cut_to_limit(
    dialogue: Dialogue, rows: tuple[EncodedDialogue, ...], max_length: int
) -> tuple[Dialogue, tuple[EncodedDialogue, ...]] | None:
    """Return the longest beginning of a dialogue that fits and ends with a reply; None if the first does not fit."""
    if len(rows) > 1:
        fitting = tuple(row for row in rows if len(row.input_ids) <= max_length)
        messages = max((row.reply_ends[-1][0] for row in fitting), default=0)
    else:
        ends = [end for end in rows[0].reply_ends if end[1] <= max_length]
        messages, tokens = ends[-1] if ends else (0, 0)
        row = rows[0]
        fitting = (EncodedDialogue(row.input_ids[:tokens], row.labels[:tokens], tuple(ends)),)
    return (replace(dialogue, messages=dialogue.messages[:messages]), fitting) if messages else None


def _count_rows(
    ledger: Ledger, dialogue: Dialogue, rows: tuple[EncodedDialogue, ...], stop_ids: Collection[int]
) -> None:
    """Add the counts of a dialogue and its rows to a ledger."""
    first = dialogue.messages[0]
    for row in rows:
        ledger.add(
            Ledger(
                rows=1,
                replies=len(row.reply_ends),
                stops=sum(row.labels[end - 1] in stop_ids for _, end in row.reply_ends),
                thoughtless=row.replies_without_reasoning,
                thoughts=row.replies_with_thoughts,
                tokens=len(row.input_ids),
                supervised_tokens=row.supervised_tokens,
                longest=len(row.input_ids),
                roles={role: list(counts) for role, counts in row.roles.items()},
            )
        )
    ledger.add(
        Ledger(
            dialogues=1,
            dialogue_tokens=max(len(row.input_ids) for row in rows),
            loss_on_prompts=int(dialogue.loss_on_prompts),
            systems=[first.content if first.role == "system" else None],
        )
    )
