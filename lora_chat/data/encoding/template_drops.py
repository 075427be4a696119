"""Find out whether a chat template leaves out part of a dialogue: a message, a name, or part of a tool call.

Most dialogues need no further rendering, because their text is found in the rendered prompts, each message after the
one before it. A short text may be there by chance, so that once for each shape of dialogue a copy with other values is
rendered. If one of these values is missing, a copy that differs in this place decides: if the template writes the same
text for both, it leaves the place out.
"""

import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from lora_chat.data.dialogue import ChatMessage
from lora_chat.data.encoding.content_places import Path, Place, Replacements, describe_shape, find_places
from lora_chat.data.encoding.turns import ReplyRequest, Turn, TurnReader, can_share_row
from lora_chat.errors import DataError

_UNMISTAKABLE_BYTES = 16
"""Length of a text that does not occur in a prompt by chance, in bytes of UTF-8."""
_MAX_SHAPES, _MAX_TRIED_PLACES = 4096, 64

Target = tuple[int, bool]
"""Number of messages of a prompt or of a chat, and whether it is a prompt."""

_MESSAGE_TITLES = {
    "system": "the system message (message {})",
    "user": "the text of the user in message {}",
    "assistant": "the reply in message {}",
    "tool": "the tool result in message {}",
}


class DropFinder:
    """Finder of what one chat template leaves out."""

    def __init__(self, reader: TurnReader, tool_template: str) -> None:
        self._reader = reader
        self._tool_template = tool_template
        self._dropped_in_shape: dict[str, frozenset[tuple[int, object, str]]] = {}

    def find(self, request: ReplyRequest, turns: Sequence[Turn]) -> str | None:
        """Return a sentence about the first place that the template leaves out; None if it writes everything."""
        messages = request.messages
        places = list(find_places(messages, turns[-1].message_index + 1))
        missing, short = _search(places, messages, turns)
        if short:
            dropped = self._find_dropped_in_shape(request, turns, places)
            missing += [spot for spot in short if (spot.message, spot.path, spot.kind) in dropped]
        small = [spot for spot in missing if spot.kind == "small"]
        missing = small + self._search_marks(request, turns, [spot for spot in missing if spot.kind != "small"])
        in_order = sorted(missing, key=places.index)
        for spot in islice(in_order, _MAX_TRIED_PLACES):
            part = self._find_dropped_part(request, turns, spot)
            if part:
                return f"the chat template leaves out{part}{_describe(spot, messages)}{self._advice(spot, messages)}"
        return None

    def _find_dropped_in_shape(
        self, request: ReplyRequest, turns: Sequence[Turn], places: Sequence[Place]
    ) -> frozenset[tuple[int, object, str]]:
        """Return the places that seem to be left out of dialogues of this shape."""
        trained = [turn.message_index for turn in turns]
        shape = json.dumps([trained, bool(request.tools)]) + describe_shape(request.messages[: trained[-1] + 1])
        if shape not in self._dropped_in_shape:
            if len(self._dropped_in_shape) >= _MAX_SHAPES:
                self._dropped_in_shape.clear()
            missing = [
                p for p in self._search_marks(request, turns, places) if self._find_dropped_part(request, turns, p)
            ]
            self._dropped_in_shape[shape] = frozenset((p.message, p.path, p.kind) for p in missing)
        return self._dropped_in_shape[shape]

    def _search_marks(self, request: ReplyRequest, turns: Sequence[Turn], places: Sequence[Place]) -> list[Place]:
        """Return the places whose replaced values are missing in a prompt that should contain them."""
        if not places:
            return []
        replacements = Replacements()
        for spot in places:
            if spot.kind != "small":
                replacements.replace(spot)
        messages = replacements.apply(request.messages)
        texts: dict[Target, str] = {}
        missing = []
        for spot in places:
            try:
                for target in _targets(spot, request.messages, turns):
                    if target not in texts:
                        texts[target] = self._render(messages, request, target).casefold()
            except DataError:  # the template refuses the other values
                return list(places)
            marks = replacements.marks.get(spot)
            if not marks or any(
                mark not in texts[target] for target in _targets(spot, request.messages, turns) for mark in marks
            ):
                missing.append(spot)
        return missing

    def _find_dropped_part(self, request: ReplyRequest, turns: Sequence[Turn], spot: Place) -> str | None:
        """Return " " or " part of " if the template leaves out a place or part of it; None if it writes it.

        Templates may shorten earlier replies, as they do with reasoning, if they write each whole where it is new.
        """
        pieces = range(len(spot.pieces) if spot.kind == "text" else 1)
        targets = _targets(spot, request.messages, turns)
        dropped = [self._is_dropped(request, targets, spot, piece) for piece in pieces]
        if _is_reply(spot, request.messages) and not all(dropped):
            own = [(spot.message + 1, False)]
            dropped = [self._is_dropped(request, own, spot, piece) for piece in pieces]
        if not any(dropped):
            return None
        return " " if all(dropped) else " part of "

    def _is_dropped(self, request: ReplyRequest, targets: Sequence[Target], spot: Place, piece: int) -> bool:
        """Return whether a prompt stays the same if one piece of a text changes."""
        replacements = Replacements()
        replacements.replace(spot, piece if spot.kind == "text" else None)
        messages = replacements.apply(request.messages)
        for target in targets:
            try:
                if self._render(messages, request, target) == self._render(request.messages, request, target):
                    return True
            except DataError:  # the template refuses the other value, so it reads it
                continue
        return False

    def _render(self, messages: Sequence[ChatMessage], request: ReplyRequest, target: Target) -> str:
        """Return the prompt before a message, or the chat up to it."""
        count, is_prompt = target
        arguments = self._reader.choose_arguments(request.messages[count if is_prompt else count - 1])
        (text,) = self._reader.render(
            [messages[:count]], request.tools, add_generation_prompt=is_prompt, arguments=arguments
        )
        return text

    def _advice(self, spot: Place, messages: Sequence[ChatMessage]) -> str:
        """Return what helps."""
        if spot.path == ("name",):
            return "; put the name into the text, or remove `name`"
        has_tools = spot.path != ("content",) or messages[spot.message]["role"] == "tool"
        name = self._tool_template if has_tools else self._tool_template.removesuffix("_tools")
        return f"; use a template that writes it, such as --set data.template={name}"


def _is_reply(spot: Place, messages: Sequence[ChatMessage]) -> bool:
    """Return whether a place is the text of a reply."""
    return spot.path == ("content",) and messages[spot.message]["role"] == "assistant"


def _targets(spot: Place, messages: Sequence[ChatMessage], turns: Sequence[Turn]) -> list[Target]:
    """Return the prompts and chats that must contain a place.

    A message belongs into the prompt of the next trained reply and of the last one. Templates may leave out the text
    that stands beside calls in later prompts, as they do with reasoning.
    """
    message = messages[spot.message]
    if _is_reply(spot, messages) and message.get("tool_calls"):
        return [(spot.message + 1, False)]
    following = next((t.message_index for t in turns if t.message_index > spot.message), None)
    targets = [] if following is None else list(dict.fromkeys([(following, True), (turns[-1].message_index, True)]))
    if any(t.message_index == spot.message for t in turns) and spot.path != ("content",):
        targets.append((spot.message + 1, False))
    return targets


def _search(
    places: Sequence[Place], messages: Sequence[ChatMessage], turns: Sequence[Turn]
) -> tuple[list[Place], list[Place]]:
    """Return the places that are not found in the texts of the turns, and the short ones, which chance may explain."""
    text, position = turns[-1].text, 0
    following = iter(turns)
    turn = next(following)
    shares_row = can_share_row(turns)
    missing: list[Place] = []
    short: list[Place] = []
    found_arguments: dict[tuple[int, Path], bool] = {}
    for spot in places:
        while turn.message_index < spot.message:
            turn = next(following)
        call = (spot.message, spot.path[:4])
        if len(spot.path) > 4:
            if call not in found_arguments:
                spellings = _spell_arguments(messages[spot.message]["tool_calls"][spot.path[1]])
                end, spelling = _find(text, spellings, position)
                found_arguments[call] = _is_long(spelling)
                position = max(position, end) if found_arguments[call] else position
            if found_arguments[call]:
                continue
        if spot.kind == "small":
            short.append(spot)
            continue
        end, spelling = _find(text, _spell(str(spot.value)), position)
        position = max(position, end)
        is_history = turn.message_index > spot.message
        if is_history and end and shares_row and end > len(turn.prompt):
            end = 0
        if is_history and end and not shares_row and turn.prompt.rfind(spelling) < 0:
            end = 0
        if not end:
            missing.append(spot)
        elif not _is_long(spelling):
            short.append(spot)
    return missing, short


def _is_long(text: str) -> bool:
    """Return whether a text is too long to occur in a prompt by chance."""
    return len(text) >= _UNMISTAKABLE_BYTES or len(text.encode()) >= _UNMISTAKABLE_BYTES


def _find(text: str, spellings: Iterable[str], position: int) -> tuple[int, str]:
    """Return the end of the first spelling that is found, and the spelling; 0 and an empty text if none is."""
    for spelling in spellings:
        begin = text.find(spelling, position)
        if begin >= 0:
            return begin + len(spelling), spelling
    return 0, ""


def _spell(value: str) -> Iterator[str]:
    """Yield the spellings in which templates write a text."""
    text = value.strip()
    yield text
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield json.dumps(text)[1:-1]
    yield html.escape(text)


def _spell_arguments(call: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    """Yield the spellings in which templates write the arguments of a call as a whole."""
    arguments = call["function"]["arguments"]
    if isinstance(arguments, str):
        yield arguments
    else:
        yield json.dumps(arguments, ensure_ascii=False)
        yield json.dumps(arguments)


def _describe(spot: Place, messages: Sequence[ChatMessage]) -> str:
    """Return the name of a place in a sentence."""
    number = spot.message + 1
    if spot.path == ("name",):
        return f"the name {spot.value!a} of message {number}"
    if spot.path == ("content",):
        return _MESSAGE_TITLES[messages[spot.message]["role"]].format(number)
    if len(spot.path) <= 4:
        return f"the tool call in message {number}"
    keys = [str(key) for key in spot.path[4:]]
    what = "name of the argument" if spot.kind == "key" else "value of the argument"
    return f"the {what} {'.'.join(keys)!a} of the tool call in message {number}"
