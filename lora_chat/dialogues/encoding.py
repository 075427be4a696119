"""Dialogue -> input_ids and labels; the loss is on assistant turns, their stop token included."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_chat.dialogues.chat_template import render_ids
from lora_chat.dialogues.dialogue import Dialogue, Message
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""Label of a token without loss, as PyTorch's cross entropy has it."""
_SHOWN = 5


@dataclass(frozen=True)
class EncodedDialogue:
    """Ids and labels of one dialogue, both (length,)."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(label != IGNORE_INDEX for label in self.labels)


@dataclass(frozen=True)
class EncodingReport:
    """What became of a set of dialogues: read = encoded + dropped."""

    dialogues: int
    rows: int
    """More than dialogues where the template rewrites earlier turns."""
    dropped: int
    tokens: int
    supervised_tokens: int
    longest: int


def encode_dialogue(
    dialogue: Dialogue, tokenizer: "PreTrainedTokenizerBase", stop_ids: Collection[int]
) -> tuple[EncodedDialogue, ...]:
    """Encode one dialogue to one row; to a row for each trained reply where the template rewrites earlier turns.

    Each assistant turn is what the template adds between the serving prompt (the messages before it with
    `add_generation_prompt`) and its stop token. So what is trained is what is served, by construction; a
    template for which that does not hold raises DataError with the reason. Templates of reasoning models drop
    earlier thoughts: there every reply is trained behind the history that inference will show it.
    """
    messages = dialogue.as_dicts
    tools = dialogue.tool_list
    whole = render_ids(tokenizer, messages, reply_follows=False, tools=tools)
    if tools and whole == render_ids(tokenizer, messages, reply_follows=False):
        raise DataError("the chat template leaves out the tools")
    turns = [
        _encode_turn(dialogue, messages, whole, place, tokenizer, stop_ids, tools)
        for place, message in enumerate(dialogue.messages)
        if message.role == "assistant" and message.trained
    ]
    if any(whole[: len(turn.input_ids)] != turn.input_ids for turn in turns):
        return tuple(turns)
    labels = [IGNORE_INDEX] * len(whole)
    for turn in turns:
        for place, label in enumerate(turn.labels):
            if label != IGNORE_INDEX:
                labels[place] = label
    return (EncodedDialogue(whole, labels),)


def _encode_turn(
    dialogue: Dialogue,
    messages: list[dict[str, Any]],
    whole: list[int],
    place: int,
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Collection[int],
    tools: list[dict[str, Any]] | None,
) -> EncodedDialogue:
    """The dialogue as far as one reply, with loss on that reply alone; `whole` are its ids to the end."""
    message = dialogue.messages[place]
    prompt = render_ids(tokenizer, messages[:place], reply_follows=True, tools=tools)
    until = whole
    if place + 1 < len(messages):
        until = render_ids(tokenizer, messages[: place + 1], reply_follows=False, tools=tools)
    if until[: len(prompt)] != prompt:
        blanks = message.content[:1].isspace()
        why = "; its blanks at the beginning merge with the template's, remove them" if blanks else ""
        raise DataError(f"the prompt served before message {place + 1} is not what would be trained{why}")
    _check_shown(message, tokenizer, until[len(prompt) :], place + 1)
    stops = [i for i in range(len(prompt), len(until)) if until[i] in stop_ids]
    if not stops:
        raise DataError(f"message {place + 1} ends without a stop token; the model would never learn to stop")
    # Some templates close a turn and then the text; generation ends at the first of the two.
    tail = [token for token in until[stops[0] + 1 :] if token not in stop_ids]
    end = stops[-1 if tokenizer.decode(tail).strip() else 0] + 1
    labels = [IGNORE_INDEX] * len(prompt) + until[len(prompt) : end] + [IGNORE_INDEX] * (len(until) - end)
    return EncodedDialogue(until, labels)


def _check_shown(message: Message, tokenizer: "PreTrainedTokenizerBase", ids: list[int], number: int) -> None:
    """Some templates pass over tools, reasoning, or text that they expect in parts, without a word."""
    text = _bare(tokenizer.decode(ids))
    for call in message.tool_calls:
        if _bare(call.name) not in text:
            raise DataError(f"the chat template leaves out the tool call in message {number}")
    for what, said in (("text", message.content), ("reasoning", message.reasoning or "")):
        # Some tokenizers normalise; what they make of the same text alone is then what must be there.
        if _bare(said) not in text and _bare(tokenizer.decode(_encode_text(tokenizer, said))) not in text:
            raise DataError(f"the chat template leaves out the {what} of message {number}")


def _bare(text: str) -> str:
    """Without blanks, which templates trim and add."""
    return "".join(text.split())


def _encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text.strip(), add_special_tokens=False, split_special_tokens=True)
    return ids


def encode_dialogues(
    dialogues: Sequence[Dialogue],
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Collection[int],
    max_length: int,
    over_long: str,
    positions: int | None = None,
) -> tuple[list[EncodedDialogue], EncodingReport]:
    """Encode dialogues; those beyond `max_length` tokens, or the base's positions, are refused or dropped.

    Raises DataError naming file and line of the first faults.
    """
    limit = min(max_length, positions or max_length)
    kept: list[EncodedDialogue] = []
    count = 0
    long: list[tuple[str, int]] = []
    faults: list[str] = []
    for dialogue in dialogues:
        try:
            encoded = encode_dialogue(dialogue, tokenizer, stop_ids)
        except DataError as error:
            faults.append(f"{dialogue.path}:{dialogue.line}: {error}")
            continue
        length = max(len(row.input_ids) for row in encoded)
        if length > limit:
            long.append((f"{dialogue.path}:{dialogue.line}", length))
        else:
            kept.extend(encoded)
            count += 1
    if faults:
        more = f"\n... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DataError(f"{len(faults)} dialogues cannot be encoded:\n" + "\n".join(faults[:_SHOWN]) + more)
    if long and (over_long == "refuse" or not kept):
        raise DataError(_too_long(long, count, limit, positions))
    report = EncodingReport(
        dialogues=count,
        rows=len(kept),
        dropped=len(long),
        tokens=sum(len(e.input_ids) for e in kept),
        supervised_tokens=sum(e.supervised_tokens for e in kept),
        longest=max(len(e.input_ids) for e in kept),
    )
    return kept, report


def _too_long(long: list[tuple[str, int]], kept: int, limit: int, positions: int | None) -> str:
    lines = [f"{where}: {length} tokens" for where, length in long[:_SHOWN]]
    more = [f"... and {len(long) - _SHOWN} more"] if len(long) > _SHOWN else []
    longest = max(length for _, length in long)
    share = "All" if not kept else f"{len(long)} of {len(long) + kept}"
    drop = "leave them out with --set data.over_long=drop"
    if positions and longest > positions:
        name = "the base's positions"
        advice = f"{drop[0].upper()}{drop[1:]}, or take" if kept else "Shorten them, or take"
        advice += " a base that reads more."
    else:
        name = "data.max_length"
        advice = f"Raise it (--set data.max_length={longest})" + (f", or {drop}." if kept else ".")
    return "\n".join([f"{share} dialogues are longer than {name}, {limit} tokens:", *lines, *more, advice])
