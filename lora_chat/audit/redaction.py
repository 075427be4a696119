"""Copies of dialogues with marks such as `[E-MAIL]` in place of secrets and personal data."""

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from lora_chat.audit.json_strings import parse_json_container, rewrite_strings
from lora_chat.audit.known_values import KnownValues
from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.scan import REDACTION_MARK, find_sensitive
from lora_chat.config.audit import FindingKind
from lora_chat.data.dialogue import Dialogue, Message

_MAX_PASSES = 8
"""Maximum number of passes over a text. In the second half a match includes its neighbours, because a long row of
numbers would need many passes otherwise."""
_MAX_ROUNDS = 4
"""Maximum number of rounds over a dialogue, each of which searches it and then replaces the values found."""
_NUMBER_RUN = re.compile(r"[0-9 .()/-]+(?<! )")
_NONBLANK_RUN = re.compile(r"\S+")


Clean = Callable[[str, str], tuple[str, int]]
"""A function of the context before a text and the text, which returns the cleaned text and the number of marks."""


def redact_dialogue(dialogue: Dialogue, kinds: Collection[FindingKind]) -> tuple[Dialogue, int]:
    """Return a cleaned copy and the number of replacements; the dialogue itself if none exist.

    Content, reasoning, names, ids, arguments of tool calls and descriptions of tools are cleaned. A JSON object or list
    remains one, and a name remains a valid name: `f_SECRET`, not `f_[SECRET]`. A value that is cleaned in one place is
    replaced by the same mark in all places, also where nothing announces it. Redacting the copy again changes nothing.
    """
    known, names = KnownValues(), _NameRedactor()
    total = 0
    for _ in range(_MAX_ROUNDS):  # repeated, because the neighbour of a replaced value may become a finding
        cleaned, count = _clean_dialogue(
            dialogue, lambda context, text: redact_text(text, kinds, context, known), names
        )
        if not known:
            return cleaned, total + count
        dialogue, spread = _clean_dialogue(cleaned, lambda _, text: known.replace(text), names)
        total += count + spread
        if not spread:
            break
    return dialogue, total


def redact_texts(texts: Sequence[str], kinds: Collection[FindingKind]) -> tuple[list[str], int]:
    """Return texts that belong together with marks, the same for equal values, and the number of replacements."""
    known, total, result = KnownValues(), 0, list(texts)
    for _ in range(_MAX_ROUNDS):
        cleaned = [redact_text(text, kinds, known=known) for text in result]
        spread = [known.replace(text) for text, _ in cleaned] if known else [(text, 0) for text, _ in cleaned]
        result = [text for text, _ in spread]
        total += sum(count for _, count in (*cleaned, *spread))
        if not any(count for _, count in spread):
            break
    return result, total


def _clean_dialogue(dialogue: Dialogue, clean: Clean, names: "_NameRedactor") -> tuple[Dialogue, int]:
    """Return a copy with all texts cleaned and the number of replacements; the dialogue itself if none exist."""
    names.start(clean)
    messages = [_clean_message(message, clean, names) for message in dialogue.messages]
    tools, count = _clean_tools(dialogue.tools, clean, names) if dialogue.tools else (dialogue.tools, 0)
    count += sum(n for _, n in messages) + names.count
    if not count:
        return dialogue, 0
    return replace(dialogue, messages=tuple(message for message, _ in messages), tools=tools), count


def redact_text(
    text: str,
    kinds: Collection[FindingKind],
    context: str = "",
    known: KnownValues | None = None,
    find: Callable[[str], Sequence[TextMatch]] = find_sensitive,
) -> tuple[str, int]:
    """Return the text with marks and their number; `context` is the text before it, which is not changed.

    The replaced values are added to `known`, and values in it keep their marks. `find` returns matches in order,
    without overlaps.
    """
    count, context_length = 0, len(context)
    for number in range(_MAX_PASSES):  # repeated, because the neighbour of a match can only be found after the match
        whole = context + text
        matches = [m for m in find(whole) if m.kind in kinds and m.start >= context_length]
        if not matches:
            break
        count += len(matches)
        if known is not None:
            matches = [replace(m, mark=known.mark(whole[m.start : m.end], m.mark)) for m in matches]
        if number >= _MAX_PASSES // 2:
            matches = _widen_matches(whole, matches, context_length)
        text = _apply_marks(whole, matches, context_length)
    return text, count


def _apply_marks(text: str, matches: Sequence[TextMatch], start: int) -> str:
    """Return the text after `start` with marks in place of matches."""
    parts = []
    for match in matches:
        parts += [text[start : match.start], match.mark]
        start = match.end
    return "".join([*parts, text[start:]])


def _widen_matches(text: str, matches: Sequence[TextMatch], first: int) -> list[TextMatch]:
    """Return matches that include the whole run of digits, or of other characters without blanks, around them.

    The numbers of a long row are found one by one otherwise, each after its neighbour has become a mark.
    """
    wide: list[TextMatch] = []
    for match in matches:
        start, end = match.start, match.end
        run = _NUMBER_RUN if text[start].isdigit() else _NONBLANK_RUN
        rest = run.match(text, end)
        end = rest.end() if rest else end
        while start > first and not text[start - 1].isspace():
            start -= 1
        if wide and start < wide[-1].end:
            continue
        wide.append(replace(match, start=start, end=end))
    return wide


class _NameRedactor:
    """The redacted names and ids of one dialogue. Different names stay different."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._copies: dict[str, int] = {}
        self.count = 0

    def start(self, clean: Clean) -> None:
        """Forget the names of the last pass over the dialogue; names that were made stay different."""
        self._clean = clean
        self._known = {}
        self.count = 0

    def redact_name(self, name: str) -> str:
        """Return the name with secrets replaced by words in capitals, because schemas do not allow brackets."""
        if name not in self._known:
            text, count = self._clean("", name)
            self.count += count
            if count:
                text = REDACTION_MARK.sub(lambda mark: re.sub(r"\W", "_", mark[0][1:-1]), text)
                self._copies[text] = self._copies.get(text, 0) + 1
                text += f"_{self._copies[text]}" if self._copies[text] > 1 else ""
            self._known[name] = text
        return self._known[name]

    def redact_optional_name(self, name: str | None) -> str | None:
        """Return the redacted name, or the missing name unchanged."""
        return self.redact_name(name) if name else name


def _clean_tools(text: str, clean: Clean, names: _NameRedactor) -> tuple[str, int]:
    """Redact the names of tools as in their calls, then all other strings. Return the number of the latter."""
    tools = parse_json_container(text)
    changed = False
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(function, dict) and isinstance(name, str):
            function["name"] = names.redact_name(name)
            changed = changed or function["name"] != name
    return _clean_text_or_json(json.dumps(tools, ensure_ascii=False) if changed else text, clean)


def _clean_message(message: Message, clean: Clean, names: _NameRedactor) -> tuple[Message, int]:
    """Return a cleaned message and the number of replacements outside names; the message itself if nothing changed."""
    content, count = _clean_text_or_json(message.content, clean)
    reasoning = message.reasoning
    if reasoning is not None:
        reasoning, n = _clean_text_or_json(reasoning, clean)
        count += n
    calls = []
    for call in message.tool_calls:
        arguments, n = _clean_text_or_json(call.arguments, clean)
        calls.append(
            replace(
                call, arguments=arguments, name=names.redact_name(call.name), id=names.redact_optional_name(call.id)
            )
        )
        count += n
    name, call_id = names.redact_optional_name(message.name), names.redact_optional_name(message.tool_call_id)
    if not count and (name, call_id, tuple(calls)) == (message.name, message.tool_call_id, message.tool_calls):
        return message, 0
    new = replace(message, content=content, reasoning=reasoning, tool_calls=tuple(calls))
    return replace(new, name=name, tool_call_id=call_id), count


def _clean_text_or_json(text: str, clean: Clean) -> tuple[str, int]:
    """Redact a JSON object or list string by string, and any other text as a whole."""
    value = parse_json_container(text)
    if value is None:
        return clean("", text)
    total = 0

    def rewrite(context: str, leaf: str) -> str:
        nonlocal total
        new, count = clean(context, leaf)
        total += count
        return new

    new_value = rewrite_strings(value, rewrite)
    return (json.dumps(new_value, ensure_ascii=False), total) if total else (text, 0)
