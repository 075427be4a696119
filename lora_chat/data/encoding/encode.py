"""Dialogue -> input_ids and labels; the loss is on assistant turns, their stop token included."""

import json
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from lora_chat.data.dialogue import Dialogue, Role
from lora_chat.data.encoding.control_tokens import LITERAL_END
from lora_chat.data.encoding.tokenizer import TextTokenizer, TokenizedText
from lora_chat.data.encoding.turns import ReplyRequest, Turn, TurnReader, can_share_row
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""Label of a token without loss, as PyTorch's cross entropy has it."""

_MAX_RENDERED_CHARACTERS = 100_000_000
"""Characters of all prompts of one dialogue together; each reply's prompt is rendered, so they grow with the square."""
_MESSAGE_OVERHEAD_CHARACTERS = 200
"""Characters that a message counts for whatever its length, because a template takes time for each."""


@dataclass(frozen=True)
class EncodedDialogue:
    """Ids and labels of one dialogue, both (length,)."""

    input_ids: list[int]
    labels: list[int]
    reply_ends: tuple[tuple[int, int], ...] = ()
    """For every trained reply: how many messages the dialogue has with it, and how many tokens."""
    roles: Mapping[Role, tuple[int, int]] = field(default_factory=dict)
    """Tokens of what each role says, and how many carry loss; what the template adds is in none."""
    replies_without_reasoning: int = 0
    """Replies without thoughts behind a prompt that opens them."""

    @property
    def supervised_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(label != IGNORE_INDEX for label in self.labels)


@dataclass(frozen=True)
class _RenderedRow:
    """A row as text, and what its messages say in their order."""

    turns: tuple[Turn, ...]
    message_texts: tuple[tuple[Role, str], ...]
    is_split: bool = False
    """Whether prompt and reply are encoded each by itself, as they are when they are served."""

    @property
    def text(self) -> str:
        last = self.turns[-1]
        return f"{last.prompt}{LITERAL_END}{last.reply}" if self.is_split else last.text


class DialogueEncoder:
    """Encodes dialogues for one tokenizer with its chat template.

    A reply is trained right behind the prompt that is served before it, by construction. Where later prompts show
    earlier replies as they were trained, a dialogue is one row. Templates of reasoning models drop earlier thoughts:
    there every reply is a row of its own, behind the history that inference will show it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]) -> None:
        self._text_tokenizer = TextTokenizer(tokenizer)
        self._turn_reader = TurnReader(tokenizer, stop_ids)
        self._stop_ids = frozenset(stop_ids)
        self._bos_id = tokenizer.bos_token_id

    def encode(self, dialogues: Sequence[Dialogue]) -> list[tuple[EncodedDialogue, ...] | DataError]:
        """The rows of each dialogue, or why it has none."""
        drafts = self._render_dialogues(dialogues)
        texts = [draft.text for found in drafts if not isinstance(found, DataError) for draft in found]
        tokenized = iter(self._tokenize(texts))
        return [
            found
            if isinstance(found, DataError)
            else _result_or_error(self._encode_rows, dialogue, found, list(islice(tokenized, len(found))))
            for dialogue, found in zip(dialogues, drafts, strict=True)
        ]

    def _tokenize(self, texts: Sequence[str]) -> list[TokenizedText | DataError]:
        try:
            return list(self._text_tokenizer.tokenize(texts))
        except DataError:
            return [_result_or_error(lambda text: self._text_tokenizer.tokenize([text])[0], text) for text in texts]

    def _render_dialogues(self, dialogues: Sequence[Dialogue]) -> list[tuple[_RenderedRow, ...] | DataError]:
        """Each dialogue as text: one row, or one for each trained reply; or why it has none."""
        asked = [_result_or_error(self._make_request, dialogue) for dialogue in dialogues]
        turns = iter(self._turn_reader.read([one for one in asked if isinstance(one, ReplyRequest)]))
        return [
            one if isinstance(one, DataError) else self._make_rows(dialogue, one, next(turns))
            for dialogue, one in zip(dialogues, asked, strict=True)
        ]

    def _make_request(self, dialogue: Dialogue) -> ReplyRequest:
        messages = self._text_tokenizer.mark(
            [self._turn_reader.extract_reasoning(message) for message in dialogue.as_dicts]
        )
        places = [i for i, m in enumerate(dialogue.messages) if m.role == "assistant" and m.trained]
        _check_rendering_size(dialogue, places)
        return ReplyRequest(messages, self._text_tokenizer.mark(dialogue.tool_list), places)

    def _make_rows(
        self, dialogue: Dialogue, asked: ReplyRequest, turns: list[Turn] | DataError
    ) -> tuple[_RenderedRow, ...] | DataError:
        if isinstance(turns, DataError) and isinstance(turns.__cause__, TypeError):
            # Some templates want the arguments of calls as text, and fail where they get them as an object.
            texts = replace(asked, messages=[_stringify_arguments(message) for message in asked.messages])
            (turns,) = self._turn_reader.read([texts])
        if isinstance(turns, DataError):
            return turns
        said = tuple((m.role, d["content"].strip()) for m, d in zip(dialogue.messages, asked.messages, strict=True))
        draft = _RenderedRow(tuple(turns), said)
        return (draft,) if can_share_row(turns) else _split_replies(draft)

    def _encode_rows(
        self, dialogue: Dialogue, drafts: Sequence[_RenderedRow], texts: Sequence[TokenizedText | DataError]
    ) -> tuple[EncodedDialogue, ...]:
        """Lay the labels; where a token reaches over a border, each reply becomes a row of its own."""
        rows: list[EncodedDialogue] = []
        for draft, text in zip(drafts, texts, strict=True):
            if isinstance(text, DataError):
                raise text
            row = self._label_row(draft, text)
            if row is not None:
                rows.append(row)
                continue
            place = draft.turns[0].message_index
            if len(draft.turns) > 1:
                again = _split_replies(draft)
            elif draft.is_split or dialogue.messages[place].content[:1].isspace():
                raise DataError(
                    f"the blanks at the beginning of message {place + 1} merge with the chat template's, so the prompt "
                    "served before it is not what would be trained; remove them"
                )
            else:
                again = (replace(draft, is_split=True),)
            rows += self._encode_rows(dialogue, again, self._text_tokenizer.tokenize([part.text for part in again]))
        return tuple(rows)

    def _label_row(self, draft: _RenderedRow, text: TokenizedText) -> EncodedDialogue | None:
        """None where a token reaches over the beginning or the end of a reply."""
        if text.ids[:2] == [self._bos_id] * 2:
            raise DataError("the chat template writes the beginning of text (BOS) twice")
        labels = [IGNORE_INDEX] * len(text.ids)
        ends = []
        for turn in draft.turns:
            begin = self._text_tokenizer.count_prefix_tokens(text, len(turn.prompt))
            end = self._text_tokenizer.count_prefix_tokens(text, len(turn.text) + draft.is_split)
            if begin is None or end is None:
                return None
            if text.ids[end - 1] not in self._stop_ids:
                raise DataError(
                    f"message {turn.message_index + 1} ends without a stop token; the model would never stop"
                )
            labels[begin:end] = text.ids[begin:end]
            ends.append((turn.message_index + 1, end))
        replies_without_reasoning = sum(turn.without_reasoning for turn in draft.turns)
        return EncodedDialogue(
            text.ids, labels, tuple(ends), _count_role_tokens(draft, text, labels), replies_without_reasoning
        )


def _check_rendering_size(dialogue: Dialogue, reply_indices: Sequence[int]) -> None:
    """Raise DataError for a dialogue whose prompts would take minutes to render and gigabytes to keep."""
    sizes = [
        _MESSAGE_OVERHEAD_CHARACTERS
        + len(m.content)
        + len(m.reasoning or "")
        + sum(len(call.arguments) for call in m.tool_calls)
        for m in dialogue.messages
    ]
    before = [0, *accumulate(sizes)]
    if sum(before[place] for place in reply_indices) > _MAX_RENDERED_CHARACTERS:
        raise DataError(
            f"it has {len(reply_indices):,} trained replies in "
            f"{before[-1] - _MESSAGE_OVERHEAD_CHARACTERS * len(sizes):,} characters, too many to "
            "render the prompt of each; split it into several dialogues"
        )


def _split_replies(draft: _RenderedRow) -> tuple[_RenderedRow, ...]:
    """A row for each reply."""
    return tuple(_RenderedRow((turn,), draft.message_texts[: turn.message_index + 1]) for turn in draft.turns)


def _stringify_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message
    functions = [call["function"] for call in calls]
    texts = [json.dumps(function["arguments"], ensure_ascii=False) for function in functions]
    changed = [
        call | {"function": call["function"] | {"arguments": text}} for call, text in zip(calls, texts, strict=True)
    ]
    return message | {"tool_calls": changed}


def encode_dialogue(
    dialogue: Dialogue, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]
) -> tuple[EncodedDialogue, ...]:
    """The rows of one dialogue; raises DataError with the reason why it has none."""
    (found,) = DialogueEncoder(tokenizer, stop_ids).encode([dialogue])
    if isinstance(found, DataError):
        raise found
    return found


def _count_role_tokens(draft: _RenderedRow, text: TokenizedText, labels: list[int]) -> dict[Role, tuple[int, int]]:
    """Tokens of what each message says, found in the order of the messages, and how many of them carry loss."""
    counts: dict[Role, tuple[int, int]] = {}
    place = 0
    for role, said in draft.message_texts if text.offsets else ():
        found = text.text.find(said, place)
        if found >= 0:
            place = found + len(said)
            begin, end = (bisect_left(text.offsets or [], (edge, 0)) for edge in (found, place))
            tokens, supervised = counts.get(role, (0, 0))
            carry = sum(label != IGNORE_INDEX for label in labels[begin:end])
            counts[role] = (tokens + end - begin, supervised + carry)
    return counts


def _result_or_error(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except DataError as error:
        return error
