"""A copy of a dialogue with marks such as `[E-MAIL]` in place of secrets and personal data."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from lora_chat.audit.json_strings import parse_json_container, rewrite_strings
from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.scan import REDACTION_MARK, find_sensitive
from lora_chat.config.audit import FindingKind
from lora_chat.data.dialogue import Dialogue, Message

_MAX_PASSES = 8
"""Most passes over a text; from the middle on a match takes its neighbours with it, so that a long row needs few."""
_NUMBER_RUN = re.compile(r"[0-9 .()/-]+(?<! )")
_NONBLANK_RUN = re.compile(r"\S+")


def redact_dialogue(dialogue: Dialogue, kinds: Collection[FindingKind]) -> tuple[Dialogue, int]:
    """A cleaned copy and how many stretches were replaced; the dialogue itself if there were none.

    Content, reasoning, names, ids and arguments of calls and descriptions of tools are cleaned; what was a JSON object
    or list stays one, and a name stays a name: `f_SECRET`, not `f_[SECRET]`. Redacting the copy again changes nothing.
    """
    names = _NameRedactor(kinds)
    counted = [_redact_message(message, kinds, names) for message in dialogue.messages]
    tools, count = _redact_tools(dialogue.tools, kinds, names) if dialogue.tools else (dialogue.tools, 0)
    count += sum(n for _, n in counted) + names.count
    if not count:
        return dialogue, 0
    return replace(dialogue, messages=tuple(message for message, _ in counted), tools=tools), count


def redact_text(text: str, kinds: Collection[FindingKind], context: str = "") -> tuple[str, int]:
    """The text with marks, and how many were set; `context` is what stands before it and stays."""
    count, before = 0, len(context)
    for number in range(_MAX_PASSES):  # again until nothing is left: what stood next to a match can be seen only now
        whole = context + text
        found = [m for m in find_sensitive(whole) if m.kind in kinds and m.start >= before]
        if not found:
            break
        text = _apply_marks(whole, found if number < _MAX_PASSES // 2 else _widen_matches(whole, found, before), before)
        count += len(found)
    return text, count


def _apply_marks(text: str, found: Sequence[TextMatch], start: int) -> str:
    """Return the text from `start` on with marks in place of matches."""
    parts = []
    for match in found:
        parts += [text[start : match.start], match.mark]
        start = match.end
    return "".join([*parts, text[start:]])


def _widen_matches(text: str, found: Sequence[TextMatch], first: int) -> list[TextMatch]:
    """Extend matches over the run of digits or of other characters without blanks that they stand in.

    Numbers in a long row come to light one by one, each when its neighbour is a mark.
    """
    wide: list[TextMatch] = []
    for match in found:
        start, end = match.start, match.end
        run = _NUMBER_RUN if text[start].isdigit() else _NONBLANK_RUN
        behind = run.match(text, end)
        end = behind.end() if behind else end
        while start > first and not text[start - 1].isspace():
            start -= 1
        if wide and start < wide[-1].end:
            continue
        wide.append(replace(match, start=start, end=end))
    return wide


class _NameRedactor:
    """Redacts names and ids of one dialogue, equal ones alike and different ones differently."""

    def __init__(self, kinds: Collection[FindingKind]) -> None:
        self._kinds = kinds
        self._known: dict[str, str] = {}
        self._copies: dict[str, int] = {}
        self.count = 0

    def redact_name(self, name: str) -> str:
        """Return the name; a secret in it becomes a word in capitals, because schemas allow no brackets."""
        if name not in self._known:
            text, count = redact_text(name, self._kinds)
            self.count += count
            if count:
                text = REDACTION_MARK.sub(lambda mark: re.sub(r"\W", "_", mark[0][1:-1]), text)
                self._copies[text] = self._copies.get(text, 0) + 1
                text += f"_{self._copies[text]}" if self._copies[text] > 1 else ""
            self._known[name] = text
        return self._known[name]

    def redact_optional_name(self, name: str | None) -> str | None:
        """Return the same of a name that may be missing."""
        return self.redact_name(name) if name else name


def _redact_tools(text: str, kinds: Collection[FindingKind], names: _NameRedactor) -> tuple[str, int]:
    """Redact the names of tools as calls have them, then all other strings."""
    tools = parse_json_container(text)
    changed = False
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            clean = names.redact_name(function["name"])
            changed = changed or clean != function["name"]
            function["name"] = clean
    return _redact_text_or_json(json.dumps(tools, ensure_ascii=False) if changed else text, kinds)


def _redact_message(message: Message, kinds: Collection[FindingKind], names: _NameRedactor) -> tuple[Message, int]:
    content, count = _redact_text_or_json(message.content, kinds)
    reasoning = message.reasoning
    if reasoning is not None:
        reasoning, n = _redact_text_or_json(reasoning, kinds)
        count += n
    calls = []
    for call in message.tool_calls:
        arguments, n = _redact_text_or_json(call.arguments, kinds)
        calls.append(
            replace(
                call, arguments=arguments, name=names.redact_name(call.name), id=names.redact_optional_name(call.id)
            )
        )
        count += n
    name, call_id = names.redact_optional_name(message.name), names.redact_optional_name(message.tool_call_id)
    if not count and (name, call_id, tuple(calls)) == (message.name, message.tool_call_id, message.tool_calls):
        return message, 0
    clean = replace(message, content=content, reasoning=reasoning, tool_calls=tuple(calls))
    return replace(clean, name=name, tool_call_id=call_id), count


def _redact_text_or_json(text: str, kinds: Collection[FindingKind]) -> tuple[str, int]:
    """As plain text, or string by string if it is a JSON object or list."""
    value = parse_json_container(text)
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
