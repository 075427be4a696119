"""Control tokens in what people wrote: which there are, and marks around them that say they are meant as text."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "\U000f0000", "\U000f0001"
"""Private characters around a control token that is meant as text; content cannot hold them (see `messages`)."""

# Gemma keeps these as single tokens. They are text that happens to be in the vocabulary, and open nothing.
_ELEMENTS = "table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code|p|a|li|ul|ol"
_TEXT = re.compile(rf"\s*|</?({_ELEMENTS})>")


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Every added token that is more than blanks or an HTML element, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special or not _TEXT.fullmatch(token.content)}
    return tuple(sorted(names - {""}, key=lambda name: (-len(name), name)))


_OURS = {"role", "content", "reasoning_content", "thinking", "tool_calls", "tool_call_id", "name", "id"} | {
    "type",
    "function",
    "arguments",
    "description",
    "parameters",
    "properties",
}
"""Keys that every dialogue has, in the same sense."""


class Marker:
    """Puts marks around control tokens, and where a template's text could complete one.

    Templates write `<function=` + name + `>`, so a name that ends like a token without its `>` would become one.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        self._whole = re.compile("|".join(map(re.escape, names)) or "(?!)")  # the first that fits wins
        self._firsts = frozenset(name[0] for name in names)
        self._longest = max(map(len, names), default=0)
        self._insides = "\n".join(name[1:-1] for name in names)
        cuts = [(name, n) for name in names for n in range(1, len(name))]
        self._heads = frozenset(name[:n] for name, n in cuts if _telling(name[:n]))
        self._tails = frozenset(name[n:] for name, n in cuts if _telling(name[n:]))
        self._head_lasts = frozenset(head[-1] for head in self._heads)
        self._tail_firsts = frozenset(tail[0] for tail in self._tails)

    def mark(self, value: Any) -> Any:
        """The same messages or tools with every control token between OPEN and CLOSE.

        Raises DataError for one in a key, which templates write out too. Roles are ours and stay as they are.
        """
        if isinstance(value, str):
            return self._mark_text(value)
        if isinstance(value, dict):
            for key in value.keys() - _OURS:
                self._check_key(key)
            return {key: item if key == "role" else self.mark(item) for key, item in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list | tuple) else value

    def pieces(self, text: str) -> Iterator[tuple[int, str, bool]]:
        """A rendered text in pieces: where each begins, its text, and whether it is a control token meant as text.

        Templates take strings apart and may leave a mark alone; it still keeps its sides from joining into a token.
        """
        begin, opened = 0, False
        for found in re.finditer(f"[{OPEN}{CLOSE}]|$", text):
            piece = text[begin : found.start()]
            if piece:
                yield begin, piece, opened and found[0] == CLOSE and self._whole.fullmatch(piece) is not None
            begin, opened = found.end(), found[0] == OPEN

    def _mark_text(self, text: str) -> str:
        begins, ends = self._parts(text.strip())
        if not any(first in text for first in self._firsts):  # far faster than the pattern
            marked = text
        else:
            marked = self._whole.sub(rf"{OPEN}\g<0>{CLOSE}", text)
        if begins or ends:
            # Within the blanks, which templates trim.
            bare = marked.strip()
            marked = marked.replace(bare, (CLOSE if begins else "") + bare + (CLOSE if ends else ""))
        return marked

    def _check_key(self, key: str) -> None:
        found = self._whole.search(key)
        if found:
            raise DataError(f"the key {key!a} holds the control token {found[0]!a}; rename it")
        if any(self._parts(key.strip())):
            raise DataError(f"the key {key!a} begins or ends with a part of a control token; rename it")

    def _parts(self, text: str) -> tuple[bool, bool]:
        """Whether a text begins, and whether it ends, within a control token."""
        if len(text) < self._longest and _telling(text) and text in self._insides:
            return True, True
        lengths = range(2, self._longest)
        begins = text[:1] in self._tail_firsts and any(text[:n] in self._tails for n in lengths)
        return begins, text[-1:] in self._head_lasts and any(text[-n:] in self._heads for n in lengths)


def _telling(part: str) -> bool:
    """Whether a part of a token is more than a letter or a piece of a word."""
    return len(part) > 1 and re.search(r"\W", part) is not None
