"""Encode dialogues as input_ids and labels, with loss on the replies and their stop tokens."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from lora_chat.data.dialogue import ChatMessage, Dialogue
from lora_chat.data.encoding.bundled_templates import find_tool_template
from lora_chat.data.encoding.new_messages import find_new_messages
from lora_chat.data.encoding.rendered_row import (
    IGNORE_INDEX,
    EncodedDialogue,
    RenderedRow,
    label_row,
    separate_reply,
    split_replies,
)
from lora_chat.data.encoding.template_drops import DropFinder
from lora_chat.data.encoding.tokenizer import TextTokenizer, TokenizedText
from lora_chat.data.encoding.turns import ReplyRequest, Turn, TurnReader, can_share_row
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORE_INDEX", "DialogueEncoder", "EncodedDialogue", "encode_dialogue"]

P = ParamSpec("P")
T = TypeVar("T")

_JOIN_HINT = "; data.turn_order=join would make one message of several of one role in a row"
_MAX_RENDERED_CHARACTERS = 100_000_000
"""Most characters in all prompts of a dialogue; their sum grows with the square of the number of replies."""
_MESSAGE_OVERHEAD_CHARACTERS = 200
"""Characters that are added for each message, because a template takes time for each."""


class DialogueEncoder:
    """Encoder of dialogues for one tokenizer with its chat template.

    A reply is trained after exactly the prompt that inference shows before it. A dialogue is one row if its later
    prompts contain the earlier replies exactly as trained. Templates of reasoning models drop earlier reasoning from
    the prompt; then each reply is a separate row, after the history that inference shows.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]) -> None:
        self._text_tokenizer = TextTokenizer(tokenizer)
        self._turn_reader = TurnReader(tokenizer, stop_ids)
        self._drop_finder = DropFinder(self._turn_reader, find_tool_template(tokenizer.get_vocab()).name)
        self._stop_ids = frozenset(stop_ids)
        self._bos_id = tokenizer.bos_token_id

    def encode(self, dialogues: Sequence[Dialogue]) -> list[tuple[EncodedDialogue, ...] | DataError]:
        """Return the rows of each dialogue, or the reason why it has none."""
        rendered = self._render_dialogues(dialogues)
        texts = [row.text for rows in rendered if not isinstance(rows, DataError) for row in rows]
        tokenized = iter(self._tokenize(texts))
        return [
            rows
            if isinstance(rows, DataError)
            else _result_or_error(self._encode_rows, dialogue, rows, list(islice(tokenized, len(rows))))
            for dialogue, rows in zip(dialogues, rendered, strict=True)
        ]

    def _tokenize(self, texts: Sequence[str]) -> list[TokenizedText | DataError]:
        """Tokenize all texts at once, or one by one if that fails, to find the faulty ones."""
        try:
            return list(self._text_tokenizer.tokenize(texts))
        except DataError:
            return [_result_or_error(lambda text: self._text_tokenizer.tokenize([text])[0], text) for text in texts]

    def _render_dialogues(self, dialogues: Sequence[Dialogue]) -> list[tuple[RenderedRow, ...] | DataError]:
        """Return each dialogue as text, in one row or one for each trained reply, or the reason why it has none."""
        requests = [_result_or_error(self._make_request, dialogue) for dialogue in dialogues]
        turns = iter(self._turn_reader.read([request for request in requests if isinstance(request, ReplyRequest)]))
        return [
            request if isinstance(request, DataError) else self._make_rows(dialogue, request, next(turns))
            for dialogue, request in zip(dialogues, requests, strict=True)
        ]

    def _make_request(self, dialogue: Dialogue) -> ReplyRequest:
        messages = self._text_tokenizer.mark(
            [self._turn_reader.extract_reasoning(message) for message in dialogue.as_dicts]
        )
        reply_indices = [i for i, m in enumerate(dialogue.messages) if m.role == "assistant" and m.trained]
        if dialogue.loss_on_prompts:  # replies that carry no loss must be found too
            last = reply_indices[-1]
            reply_indices = [i for i, m in enumerate(dialogue.messages[: last + 1]) if m.role == "assistant"]
        _check_rendering_size(dialogue, reply_indices)
        return ReplyRequest(messages, self._text_tokenizer.mark(dialogue.tool_list), reply_indices)

    def _make_rows(
        self, dialogue: Dialogue, request: ReplyRequest, turns: list[Turn] | DataError
    ) -> tuple[RenderedRow, ...] | DataError:
        if isinstance(turns, DataError) and isinstance(turns.__cause__, TypeError):
            # Some templates expect the arguments of tool calls as text and fail on an object.
            request = replace(request, messages=[stringify_arguments(message) for message in request.messages])
            (turns,) = self._turn_reader.read([request])
        if isinstance(turns, DataError):
            return DataError(f"{turns}{_JOIN_HINT}") if dialogue.has_neighbours else turns
        dropped = self._drop_finder.find(request, turns)
        if dropped:
            return DataError(dropped)
        contents = tuple(
            (m.role, marked["content"].strip()) for m, marked in zip(dialogue.messages, request.messages, strict=True)
        )
        row = RenderedRow(tuple(turns), contents)
        if dialogue.loss_on_prompts:
            untrained = frozenset(t.message_index for t in turns if not dialogue.messages[t.message_index].trained)
            row = replace(row, loss_begin=0, untrained=untrained)
        if can_share_row(turns):
            return (row,)
        new_messages = find_new_messages(self._turn_reader, request, turns) if dialogue.loss_on_prompts else None
        return split_replies(row, new_messages)

    def _encode_rows(
        self, dialogue: Dialogue, rendered_rows: Sequence[RenderedRow], texts: Sequence[TokenizedText | DataError]
    ) -> tuple[EncodedDialogue, ...]:
        """Set the labels; if a token crosses the border of a turn, each reply becomes a separate row."""
        rows: list[EncodedDialogue] = []
        for rendered, text in zip(rendered_rows, texts, strict=True):
            if isinstance(text, DataError):
                raise text
            if text.ids[:2] == [self._bos_id] * 2:
                raise DataError("the chat template writes the beginning of text (BOS) twice")
            row = label_row(rendered, text, self._text_tokenizer, self._stop_ids)
            if row is not None:
                rows.append(row)
                continue
            index = rendered.turns[0].message_index
            if len(rendered.turns) > 1:
                parts = split_replies(rendered)
            elif rendered.is_split or dialogue.messages[index].content[:1].isspace():
                raise DataError(
                    f"the blanks at the beginning of message {index + 1} merge with the chat template's, so training "
                    "would see another prompt than inference; remove them"
                )
            else:
                parts = (separate_reply(rendered),)
            rows += self._encode_rows(dialogue, parts, self._text_tokenizer.tokenize([part.text for part in parts]))
        return tuple(rows)


def _check_rendering_size(dialogue: Dialogue, reply_indices: Sequence[int]) -> None:
    """Raise DataError for a dialogue whose prompts would take minutes to render and gigabytes of memory."""
    sizes = [
        _MESSAGE_OVERHEAD_CHARACTERS
        + len(m.content)
        + len(m.reasoning or "")
        + sum(len(call.arguments) for call in m.tool_calls)
        for m in dialogue.messages
    ]
    before = [0, *accumulate(sizes)]
    if sum(before[index] for index in reply_indices) > _MAX_RENDERED_CHARACTERS:
        raise DataError(
            f"has {len(reply_indices):,} trained replies in "
            f"{before[-1] - _MESSAGE_OVERHEAD_CHARACTERS * len(sizes):,} characters, too many to "
            "render the prompt of each; split it into several dialogues"
        )


def stringify_arguments(message: ChatMessage) -> ChatMessage:
    """Return a message with the arguments of its tool calls as JSON text."""
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
    """Return the rows of one dialogue; raises DataError with the reason why it has none."""
    (rows,) = DialogueEncoder(tokenizer, stop_ids).encode([dialogue])
    if isinstance(rows, DataError):
        raise rows
    return rows


def _result_or_error(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | DataError:
    """Return the result of a call, or the DataError that it raised."""
    try:
        return function(*args, **kwargs)
    except DataError as error:
        return error
