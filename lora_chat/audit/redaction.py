"""A copy of a dialogue with marks such as `[E-MAIL]` in place of secrets and personal data."""

import json
from collections.abc import Collection
from dataclasses import replace

from lora_chat.audit.findings import Kind
from lora_chat.audit.json_strings import parse_container, rewrite_strings
from lora_chat.audit.sensitive.scan import find_sensitive
from lora_chat.dialogues.dialogue import Dialogue, Message


def redact(dialogue: Dialogue, kinds: Collection[Kind]) -> tuple[Dialogue, int]:
    """A cleaned copy and how many stretches were replaced; the dialogue itself if there were none.

    Content, reasoning, arguments of calls and descriptions of tools are cleaned; what was a JSON object or list stays
    one. Redacting the copy again changes nothing.
    """
    counted = [_redact_message(message, kinds) for message in dialogue.messages]
    tools, count = _redact_any(dialogue.tools, kinds) if dialogue.tools else (dialogue.tools, 0)
    count += sum(n for _, n in counted)
    if not count:
        return dialogue, 0
    return replace(dialogue, messages=tuple(message for message, _ in counted), tools=tools), count


def redact_text(text: str, kinds: Collection[Kind], context: str = "") -> tuple[str, int]:
    """The text with marks, and how many were set; `context` is what stands before it and stays."""
    count = 0
    while found := [
        m for m in find_sensitive(context + text) if m.kind in kinds and m.start >= len(context)
    ]:  # again until nothing is left: what stood next to a match can be seen only now
        for match in reversed(found):
            text = text[: match.start - len(context)] + match.mark + text[match.end - len(context) :]
        count += len(found)
    return text, count


def _redact_message(message: Message, kinds: Collection[Kind]) -> tuple[Message, int]:
    content, count = _redact_any(message.content, kinds)
    reasoning = message.reasoning
    if reasoning is not None:
        reasoning, n = _redact_any(reasoning, kinds)
        count += n
    calls = []
    for call in message.tool_calls:
        arguments, n = _redact_any(call.arguments, kinds)
        calls.append(replace(call, arguments=arguments))
        count += n
    if not count:
        return message, 0
    return replace(message, content=content, reasoning=reasoning, tool_calls=tuple(calls)), count


def _redact_any(text: str, kinds: Collection[Kind]) -> tuple[str, int]:
    """As plain text, or string by string if it is a JSON object or list."""
    value = parse_container(text)
    if value is None:
        return redact_text(text, kinds)
    total = 0

    def rewrite(context: str, leaf: str) -> str:
        nonlocal total
        clean, count = redact_text(leaf, kinds, context)
        total += count
        return clean

    value = rewrite_strings(value, rewrite)
    return (json.dumps(value, ensure_ascii=False), total) if total else (text, 0)
