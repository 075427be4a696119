"""Dialogue -> input_ids and labels; the loss is on assistant turns, their stop token included."""

import json
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from lora_chat.data.dialogue import Dialogue, Role
from lora_chat.data.encoding.control_tokens import CLOSE
from lora_chat.data.encoding.tokenizer import TextTokenizer, TokenizedText
from lora_chat.data.encoding.turns import Asked, Turn, TurnReader, in_one_row
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""Label of a token without loss, as PyTorch's cross entropy has it."""

_MOST_RENDERED = 100_000_000
"""Characters of all prompts of one dialogue together; each reply's prompt is rendered, so they grow with the square."""
_MESSAGE = 200
"""Characters that a message counts for whatever its length, because a template takes time for each."""


@dataclass(frozen=True)
class EncodedDialogue:
    """Ids and labels of one dialogue, both (length,)."""

    input_ids: list[int]
    labels: list[int]
    ends: tuple[tuple[int, int], ...] = ()
    """For every trained reply: how many messages the dialogue has with it, and how many tokens."""
    roles: Mapping[Role, tuple[int, int]] = field(default_factory=dict)
    """Tokens of what each role says, and how many carry loss; what the template adds is in none."""
    thoughtless: int = 0
    """Replies without thoughts behind a prompt that opens them."""

    @property
    def supervised_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(label != IGNORE_INDEX for label in self.labels)


@dataclass(frozen=True)
class _Draft:
    """A row as text, and what its messages say in their order."""

    turns: tuple[Turn, ...]
    said: tuple[tuple[Role, str], ...]
    parted: bool = False
    """Whether prompt and reply are encoded each by itself, as they are when they are served."""

    @property
    def text(self) -> str:
        last = self.turns[-1]
        return f"{last.prompt}{CLOSE}{last.reply}" if self.parted else last.text


class DialogueEncoder:
    """Encodes dialogues for one tokenizer with its chat template.

    A reply is trained right behind the prompt that is served before it, by construction. Where later prompts show
    earlier replies as they were trained, a dialogue is one row. Templates of reasoning models drop earlier thoughts:
    there every reply is a row of its own, behind the history that inference will show it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]) -> None:
        self._coder = TextTokenizer(tokenizer)
        self._reader = TurnReader(tokenizer, stop_ids)
        self._stop_ids = frozenset(stop_ids)
        self._begin = tokenizer.bos_token_id

    def encode(self, dialogues: Sequence[Dialogue]) -> list[tuple[EncodedDialogue, ...] | DataError]:
        """The rows of each dialogue, or why it has none."""
        drafts = self._drafts(dialogues)
        texts = [draft.text for found in drafts if not isinstance(found, DataError) for draft in found]
        tokenized = iter(self._tokenize(texts))
        return [
            found
            if isinstance(found, DataError)
            else _attempt(self._finish, dialogue, found, list(islice(tokenized, len(found))))
            for dialogue, found in zip(dialogues, drafts, strict=True)
        ]

    def _tokenize(self, texts: Sequence[str]) -> list[TokenizedText | DataError]:
        try:
            return list(self._coder.tokenize(texts))
        except DataError:
            return [_attempt(lambda text: self._coder.tokenize([text])[0], text) for text in texts]

    def _drafts(self, dialogues: Sequence[Dialogue]) -> list[tuple[_Draft, ...] | DataError]:
        """Each dialogue as text: one row, or one for each trained reply; or why it has none."""
        asked = [_attempt(self._ask, dialogue) for dialogue in dialogues]
        turns = iter(self._reader.read([one for one in asked if isinstance(one, Asked)]))
        return [
            one if isinstance(one, DataError) else self._draft(dialogue, one, next(turns))
            for dialogue, one in zip(dialogues, asked, strict=True)
        ]

    def _ask(self, dialogue: Dialogue) -> Asked:
        messages = self._coder.mark([self._reader.with_thoughts_apart(message) for message in dialogue.as_dicts])
        places = [i for i, m in enumerate(dialogue.messages) if m.role == "assistant" and m.trained]
        _check_work(dialogue, places)
        return Asked(messages, self._coder.mark(dialogue.tool_list), places)

    def _draft(self, dialogue: Dialogue, asked: Asked, turns: list[Turn] | DataError) -> tuple[_Draft, ...] | DataError:
        if isinstance(turns, DataError) and isinstance(turns.__cause__, TypeError):
            # Some templates want the arguments of calls as text, and fail where they get them as an object.
            texts = replace(asked, messages=[_with_text_arguments(message) for message in asked.messages])
            (turns,) = self._reader.read([texts])
        if isinstance(turns, DataError):
            return turns
        said = tuple((m.role, d["content"].strip()) for m, d in zip(dialogue.messages, asked.messages, strict=True))
        draft = _Draft(tuple(turns), said)
        return (draft,) if in_one_row(turns) else _apart(draft)

    def _finish(
        self, dialogue: Dialogue, drafts: Sequence[_Draft], texts: Sequence[TokenizedText | DataError]
    ) -> tuple[EncodedDialogue, ...]:
        """Lay the labels; where a token reaches over a border, each reply becomes a row of its own."""
        rows: list[EncodedDialogue] = []
        for draft, text in zip(drafts, texts, strict=True):
            if isinstance(text, DataError):
                raise text
            row = self._label(draft, text)
            if row is not None:
                rows.append(row)
                continue
            place = draft.turns[0].place
            if len(draft.turns) > 1:
                again = _apart(draft)
            elif draft.parted or dialogue.messages[place].content[:1].isspace():
                raise DataError(
                    f"the blanks at the beginning of message {place + 1} merge with the chat template's, so the prompt "
                    "served before it is not what would be trained; remove them"
                )
            else:
                again = (replace(draft, parted=True),)
            rows += self._finish(dialogue, again, self._coder.tokenize([part.text for part in again]))
        return tuple(rows)

    def _label(self, draft: _Draft, text: TokenizedText) -> EncodedDialogue | None:
        """None where a token reaches over the beginning or the end of a reply."""
        if text.ids[:2] == [self._begin] * 2:
            raise DataError("the chat template writes the beginning of text (BOS) twice")
        labels = [IGNORE_INDEX] * len(text.ids)
        ends = []
        for turn in draft.turns:
            begin = self._coder.count_before(text, len(turn.prompt))
            end = self._coder.count_before(text, len(turn.text) + draft.parted)
            if begin is None or end is None:
                return None
            if text.ids[end - 1] not in self._stop_ids:
                raise DataError(f"message {turn.place + 1} ends without a stop token; the model would never stop")
            labels[begin:end] = text.ids[begin:end]
            ends.append((turn.place + 1, end))
        thoughtless = sum(turn.thoughtless for turn in draft.turns)
        return EncodedDialogue(text.ids, labels, tuple(ends), _count_roles(draft, text, labels), thoughtless)


def _check_work(dialogue: Dialogue, places: Sequence[int]) -> None:
    """Raise DataError for a dialogue whose prompts would take minutes to render and gigabytes to keep."""
    sizes = [
        _MESSAGE + len(m.content) + len(m.reasoning or "") + sum(len(call.arguments) for call in m.tool_calls)
        for m in dialogue.messages
    ]
    before = [0, *accumulate(sizes)]
    if sum(before[place] for place in places) > _MOST_RENDERED:
        raise DataError(
            f"it has {len(places):,} trained replies in {before[-1] - _MESSAGE * len(sizes):,} characters, too many to "
            "render the prompt of each; split it into several dialogues"
        )


def _apart(draft: _Draft) -> tuple[_Draft, ...]:
    """A row for each reply."""
    return tuple(_Draft((turn,), draft.said[: turn.place + 1]) for turn in draft.turns)


def _with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
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


def _count_roles(draft: _Draft, text: TokenizedText, labels: list[int]) -> dict[Role, tuple[int, int]]:
    """Tokens of what each message says, found in the order of the messages, and how many of them carry loss."""
    counts: dict[Role, tuple[int, int]] = {}
    place = 0
    for role, said in draft.said if text.offsets else ():
        found = text.text.find(said, place)
        if found >= 0:
            place = found + len(said)
            begin, end = (bisect_left(text.offsets or [], (edge, 0)) for edge in (found, place))
            tokens, supervised = counts.get(role, (0, 0))
            carry = sum(label != IGNORE_INDEX for label in labels[begin:end])
            counts[role] = (tokens + end - begin, supervised + carry)
    return counts


def _attempt(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except DataError as error:
        return error
