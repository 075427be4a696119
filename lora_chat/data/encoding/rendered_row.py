"""A row as text, and the labels of its tokens."""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lora_chat.data.dialogue import Role
from lora_chat.data.encoding.control_tokens import LITERAL_END
from lora_chat.data.encoding.tokenizer import TextTokenizer, TokenizedText
from lora_chat.data.encoding.turns import Turn
from lora_chat.errors import DataError

IGNORE_INDEX = -100
"""Label of a token without loss; the default `ignore_index` of PyTorch's cross entropy."""


@dataclass(frozen=True)
class EncodedDialogue:
    """Ids and labels of one row, both (length,)."""

    input_ids: list[int]
    labels: list[int]
    reply_ends: tuple[tuple[int, int], ...] = ()
    """For each trained reply, the number of messages and of tokens up to its end."""
    roles: Mapping[Role, tuple[int, int]] = field(default_factory=dict)
    """Tokens and supervised tokens of the content of each role; text that the template adds counts for none."""
    replies_without_reasoning: int = 0
    """Number of replies without reasoning after a prompt that opens it."""
    replies_with_thoughts: int = 0

    @property
    def supervised_tokens(self) -> int:
        """Return the number of tokens with loss."""
        return sum(label != IGNORE_INDEX for label in self.labels)

    @property
    def supervised_spans(self) -> list[tuple[int, int]]:
        """Return the first index and the end of each run of tokens with loss, in their order."""
        spans: list[tuple[int, int]] = []
        begin = None
        for index, label in enumerate([*self.labels, IGNORE_INDEX]):
            if label != IGNORE_INDEX and begin is None:
                begin = index
            elif label == IGNORE_INDEX and begin is not None:
                spans.append((begin, index))
                begin = None
        return spans


@dataclass(frozen=True)
class RenderedRow:
    """A row as text, with the content of its messages in order."""

    turns: tuple[Turn, ...]
    message_texts: tuple[tuple[Role, str], ...]
    is_split: bool = False
    """Whether prompt and reply are tokenized separately, as at inference."""
    loss_begin: int | None = None
    """First character with loss if prompts carry loss; None if only replies do."""
    untrained: frozenset[int] = frozenset()
    """Indices of the replies that carry no loss in any case."""

    @property
    def text(self) -> str:
        """Return the text to tokenize."""
        last = self.turns[-1]
        return f"{last.prompt}{LITERAL_END}{last.reply}" if self.is_split else last.text


class _Borders(NamedTuple):
    """The first token of a reply, and the token after its end."""

    begin: int
    end: int


def split_replies(row: RenderedRow, loss_begins: Sequence[int] | None = None) -> tuple[RenderedRow, ...]:
    """Return a separate row for each trained reply.

    If prompts carry loss, a row has loss from the character after the reply before, which `loss_begins` has for each
    turn. Without `loss_begins` each turn's text continues the turn before. So no token carries loss in two rows.
    """
    if row.loss_begin is not None and loss_begins is None:
        loss_begins = [row.loss_begin, *(len(turn.text) for turn in row.turns[:-1])]
    return tuple(
        RenderedRow(
            (turn,),
            row.message_texts[: turn.message_index + 1],
            loss_begin=None if loss_begins is None else loss_begins[number],
        )
        for number, turn in enumerate(row.turns)
        if turn.message_index not in row.untrained
    )


def separate_reply(row: RenderedRow) -> RenderedRow:
    """Return a row of one turn whose prompt and reply are tokenized separately."""
    return replace(row, is_split=True)


def label_row(
    rendered: RenderedRow, text: TokenizedText, tokenizer: TextTokenizer, stop_ids: Collection[int]
) -> EncodedDialogue | None:
    """Return the row with its labels, or None if a token crosses the beginning or the end of a reply."""
    labels = [IGNORE_INDEX] * len(text.ids)
    borders = [_find_borders(rendered, turn, text, tokenizer) for turn in rendered.turns]
    known_borders = [pair for pair in borders if pair is not None]
    if len(known_borders) < len(borders):
        return None
    if rendered.loss_begin is not None:
        begin = _first_token_from(text, rendered.loss_begin, known_borders[-1].begin)
        labels[begin:] = text.ids[begin:]
    ends = []
    for turn, (begin, end) in zip(rendered.turns, known_borders, strict=True):
        if turn.message_index in rendered.untrained:
            labels[begin:end] = [IGNORE_INDEX] * (end - begin)
            continue
        if text.ids[end - 1] not in stop_ids:
            raise DataError(
                f"message {turn.message_index + 1} ends without a stop token; the model would not learn to stop"
            )
        labels[begin:end] = text.ids[begin:end]
        ends.append((turn.message_index + 1, end))
    trained = [turn for turn in rendered.turns if turn.message_index not in rendered.untrained]
    replies_without_reasoning = sum(turn.without_reasoning for turn in trained)
    replies_with_thoughts = sum(turn.has_thought for turn in trained)
    roles = _count_role_tokens(rendered, text, labels)
    return EncodedDialogue(text.ids, labels, tuple(ends), roles, replies_without_reasoning, replies_with_thoughts)


def _find_borders(rendered: RenderedRow, turn: Turn, text: TokenizedText, tokenizer: TextTokenizer) -> _Borders | None:
    """Return the tokens at which a reply begins and ends; None if a token crosses one of these borders."""
    begin = tokenizer.count_prefix_tokens(text, len(turn.prompt))
    end = tokenizer.count_prefix_tokens(text, len(turn.text) + rendered.is_split)
    return None if begin is None or end is None else _Borders(begin, end)


def _first_token_from(text: TokenizedText, character: int, otherwise: int) -> int:
    """Return the first token that begins at a character or later; `otherwise` if the tokenizer reports no offsets."""
    if character == 0:
        return 0
    return otherwise if text.offsets is None else min(bisect_left(text.offsets, (character, 0)), otherwise)


def _count_role_tokens(row: RenderedRow, text: TokenizedText, labels: list[int]) -> dict[Role, tuple[int, int]]:
    """Count the tokens and the supervised tokens of each role, by searching for the contents in their order."""
    counts: dict[Role, tuple[int, int]] = {}
    position = 0
    for role, content in row.message_texts if text.offsets else ():
        start = text.text.find(content, position)
        if start >= 0:
            position = start + len(content)
            begin, end = (bisect_left(text.offsets or [], (edge, 0)) for edge in (start, position))
            tokens, supervised = counts.get(role, (0, 0))
            new_supervised = sum(label != IGNORE_INDEX for label in labels[begin:end])
            counts[role] = (tokens + end - begin, supervised + new_supervised)
    return counts
