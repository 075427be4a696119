"""Training replies that a model is asked to complete: their first tokens are given, and the next ones expected."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_chat.data.dataset import DialogueSet, select_units
from lora_chat.data.dialogue import Dialogue
from lora_chat.data.encoding.encode import IGNORE_INDEX, DialogueEncoder, EncodedDialogue
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_chat.data.row_lengths import Numbers

GIVEN_TOKENS, CONTINUED_TOKENS = 8, 32
"""Most tokens of a reply that are given, and most that are expected after them."""
GIVEN_TEXT_TOKENS = 32
"""Tokens of a block of plain text that are given, because nothing comes before them."""
_GIVEN_PART = 4
"""The part of a reply that is given is at most one in four tokens."""
MIN_CONTINUED_TOKENS = 16
"""Fewest tokens that are expected. Shorter ends of replies are often right by chance."""
_UNITS_PER_REPLY = 2
"""Dialogues that are looked through together for each reply that is still missing."""


@dataclass(frozen=True)
class TrainingReply:
    """A reply as it was trained, or a block of plain text, with the tokens before it."""

    path: str
    line: int
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    """Tokens of the reply up to the end of the turn, which is not one of them."""

    @property
    def given_tokens(self) -> int:
        """Return the number of tokens of the reply that are given."""
        return min(GIVEN_TOKENS, len(self.ids) // _GIVEN_PART) if self.prompt else GIVEN_TEXT_TOKENS

    @property
    def is_long_enough(self) -> bool:
        """Return whether enough tokens follow the given ones."""
        return len(self.ids) - self.given_tokens >= MIN_CONTINUED_TOKENS

    def make_row(self, begin: int | None = None, end: int | None = None) -> EncodedDialogue:
        """Return a row whose labels are the expected tokens: those after the given ones, or from `begin` to `end`."""
        begin = self.given_tokens if begin is None else begin
        end = min(len(self.ids), begin + CONTINUED_TOKENS, len(self.ids) if end is None else end)
        before, expected = [*self.prompt, *self.ids[:begin]], [*self.ids[begin:end]]
        return EncodedDialogue(before + expected, [IGNORE_INDEX] * len(before) + expected)


def choose_replies(
    train: DialogueSet, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int], count: int, seed: int
) -> list[TrainingReply]:
    """Return up to `count` different replies of training dialogues in random order, each long enough."""
    import numpy as np

    random = np.random.default_rng(seed)
    units = random.permutation(sum(len(units) for _, units in train.units_by_store))
    # Dialogues without enough tokens with loss are not read, because there may be millions of them.
    can_be_long = _count_supervised(train) >= MIN_CONTINUED_TOKENS
    chosen: dict[tuple[int, ...], TrainingReply] = {}
    position = 0
    while position < len(units) and len(chosen) < count:
        size = max(100, _UNITS_PER_REPLY * (count - len(chosen)))
        window = units[position : position + size]
        part = select_units(train, window[can_be_long[window]].tolist())
        replies = [r for r in read_training_replies(part, tokenizer, stop_ids) if r.is_long_enough]
        for index in random.permutation(len(replies)).tolist():
            if len(chosen) < count:
                chosen.setdefault(replies[index].ids, replies[index])
        position += size
    return list(chosen.values())


def _count_supervised(train: DialogueSet) -> "Numbers":
    """Return the most tokens with loss of a row of each unit, (units,), in the order of `iter_units`."""
    import numpy as np

    counts: list[Numbers] = [np.zeros(0, np.int32)]
    for store, units in train.units_by_store:
        if len(units):
            counts.append(np.maximum.reduceat(store.row_lengths.supervised, store.first_rows[:-1])[units])
    return np.concatenate(counts)


def read_training_replies(
    units: DialogueSet, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]
) -> Iterator[TrainingReply]:
    """Yield the replies with loss of all dialogues, and each block of plain text as a whole."""
    encoder = DialogueEncoder(tokenizer, stop_ids)
    for path, line, dialogue, rows in units.iter_units():
        for row in _label_replies_only(dialogue, rows, encoder):
            for begin, end in row.supervised_spans:
                ids = row.input_ids[begin:end]
                stop = next((index for index, token in enumerate(ids) if token in stop_ids), len(ids))
                yield TrainingReply(path, line, tuple(row.input_ids[:begin]), tuple(ids[:stop]))


def _label_replies_only(
    dialogue: Dialogue | None, rows: Sequence[EncodedDialogue], encoder: DialogueEncoder
) -> Sequence[EncodedDialogue]:
    """Return the rows with labels on replies only, where prompts carry loss too."""
    if dialogue is None or not dialogue.loss_on_prompts:
        return rows
    (encoded,) = encoder.encode([replace(dialogue, loss_on_prompts=False)])
    return () if isinstance(encoded, DataError) else encoded
