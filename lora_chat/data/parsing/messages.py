"""Parse a row with `messages` as a Dialogue; anything that would be lost is refused."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lora_chat.config.data import TurnOrder
from lora_chat.data.dialogue import Dialogue, InvalidDialogueError, Message
from lora_chat.data.parsing.checked_text import REASONING_KEYS, check_text, read_name, read_reasoning
from lora_chat.data.parsing.entries import Entry, read_entry
from lora_chat.data.parsing.keys import MESSAGE, check_unused, format_keys
from lora_chat.data.parsing.loss_marks import LOSS_KEYS, check_parts, read_trained_flag
from lora_chat.data.parsing.parts import Content, read_content
from lora_chat.data.parsing.roles import Speaker, role_of
from lora_chat.data.parsing.row_notes import RowNotes
from lora_chat.data.parsing.tool_calls import read_call_text, read_calls, read_single_call, read_tools
from lora_chat.data.parsing.turn_order import arrange_messages
from lora_chat.data.parsing.values import read_list

_SINGLE_CALL_KEYS = ("function_call", "tool_call")
_KNOWN_KEYS = {"content", "name", "tool_calls", "tool_call_id", *REASONING_KEYS, *_SINGLE_CALL_KEYS, *LOSS_KEYS}


def parse_dialogue(
    row: object, line: int = 0, notes: RowNotes | None = None, turn_order: TurnOrder = "refuse"
) -> Dialogue:
    """Check a decoded row and return it as a Dialogue; raises InvalidDialogueError with the reason.

    Only `messages`, `system`, `tools`, `turns` and `loss` are read; other keys of the row reach neither the
    template nor the trainer.
    """
    if not isinstance(row, Mapping):
        raise InvalidDialogueError("is not a JSON object with `messages`")
    if "messages" not in row:
        raise InvalidDialogueError(f"has no `messages` (its keys: {format_keys(row)})")
    entries = read_list(row["messages"], "`messages`")
    if not isinstance(entries, list) or not entries:
        raise InvalidDialogueError("`messages` must be a list with at least one message")
    notes = RowNotes() if notes is None else notes
    parsed = [message for number, entry in enumerate(entries, 1) for message in _parse_entry(entry, number, notes)]
    messages = arrange_messages(_add_system(_join_calls(parsed, notes), row.get("system")), turn_order, notes)
    dialogue = Dialogue(messages, line, read_tools(row.get("tools")))
    if row.get("turns") == "last" or row.get("loss") == "last":
        if row.get("loss") == "all":
            raise InvalidDialogueError("has `loss: all`, which contradicts `turns: last`")
        dialogue = dialogue.last_turn_only
    return dialogue.with_loss_on_prompts if row.get("loss") == "all" else dialogue


def _add_system(messages: list[Message], content: object) -> list[Message]:
    """Put the system message of a row first; raises InvalidDialogueError if the messages have another one."""
    if not content:
        return messages
    text = read_content(content, "system", "`system`").text or ""
    own = [message.content for message in messages if message.role == "system"]
    if own and text not in own:
        raise InvalidDialogueError("has a `system` that contradicts the system message among its messages; keep one")
    return messages if own else [Message("system", check_text(text, "`system`")), *messages]


def _join_calls(parsed: Sequence[tuple[Speaker, Message]], notes: RowNotes) -> list[Message]:
    """Return the messages, with each call that is a message of its own joined to the reply or calls before it.

    Messages that differ in whether they are trained stay apart, because loss is decided for whole messages.
    """
    joined: list[Message] = []
    previous_speaker: Speaker = "system"
    for speaker, message in parsed:
        previous = joined[-1] if joined else message
        if (
            speaker == "call"
            and joined
            and (previous_speaker == "call" or (previous_speaker == "assistant" and not previous.tool_calls))
            and message.reasoning is None
            and (previous.trained, previous.name) == (message.trained, message.name)
        ):
            joined[-1] = replace(previous, tool_calls=previous.tool_calls + message.tool_calls)
            notes.add("joined_calls")
        else:
            joined.append(message)
        previous_speaker = speaker
    return joined


def _parse_entry(entry: object, number: int, notes: RowNotes) -> list[tuple[Speaker, Message]]:
    """Parse a message of any form, and attach it to the error if it is faulty."""
    try:
        return [
            parsed
            for speaker, fields in read_entry(entry, number)
            for parsed in _parse_message(speaker, fields, f"message {number} ({speaker})", notes)
        ]
    except InvalidDialogueError as error:
        error.faulty_entry = entry
        raise


def _parse_message(speaker: Speaker, fields: Entry, where: str, notes: RowNotes) -> Iterator[tuple[Speaker, Message]]:
    """Yield a message, after the results of tools in its content; raises InvalidDialogueError if it is invalid."""
    check_unused(fields, _KNOWN_KEYS, MESSAGE, notes, where)
    check_parts(fields.get("content"), notes, where)
    calls = read_calls(fields.get("tool_calls"), where)
    single = [call for key in _SINGLE_CALL_KEYS for call in read_single_call(fields.get(key), where, key)]
    if calls and single:
        raise InvalidDialogueError(f"{where} has calls under `tool_calls` and under another key; keep one of them")
    calls = calls or tuple(single)
    content = _read_content(speaker, fields, where, has_calls=bool(calls))
    calls += read_calls(content.calls, where)
    if calls and role_of(speaker) != "assistant":
        raise InvalidDialogueError(f"{where} has tool_calls; only the assistant calls tools")
    reasoning = _join_reasoning(read_reasoning(fields, where), content, where)
    if reasoning is not None and role_of(speaker) != "assistant":
        raise InvalidDialogueError(f"{where} has reasoning; only the assistant can have reasoning")
    for result in content.results:
        yield from _parse_message("tool", result, where, notes)
    if content.results and content.text is None:
        return
    text = check_text(content.text or "", where)
    if speaker in ("user", "assistant", "call") and not text.strip() and not calls:
        raise InvalidDialogueError(f"{where} is empty")
    yield (
        speaker,
        Message(
            role=role_of(speaker),
            content=text,
            reasoning=reasoning,
            tool_calls=calls,
            name=read_name(fields, "name", where),
            tool_call_id=read_name(fields, "tool_call_id", where),
            trained=read_trained_flag(fields, speaker, where),
        ),
    )


def _read_content(speaker: Speaker, fields: Entry, where: str, *, has_calls: bool) -> Content:
    """Return the content of a message, which may be missing beside calls, and is the calls of a `call`."""
    value = fields.get("content")
    if value is None and has_calls:
        return Content()
    if speaker != "call" or has_calls:
        return read_content(value, speaker, where)
    entries = [value] if isinstance(value, Mapping) else value
    if isinstance(entries, list) and all(
        isinstance(call, Mapping) and call.keys() & {"name", "function"} for call in entries
    ):
        return Content(calls=entries)
    content = read_content(value, speaker, where)
    if content.calls:
        return content
    reasoning, calls = read_call_text(content.text or "", where)
    return Content(reasoning=[*content.reasoning, *([reasoning] if reasoning else [])], calls=calls)


def _join_reasoning(reasoning: str | None, content: Content, where: str) -> str | None:
    """Return the reasoning of a message from its keys and its content; both must be the same if both are there."""
    texts = [text for text in (reasoning, *content.reasoning) if text]
    if any(text != texts[0] for text in texts):
        raise InvalidDialogueError(f"{where} has reasoning that is not one text")
    return check_text(texts[0], where) if texts else None
