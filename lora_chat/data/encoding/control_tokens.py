"""Control tokens in what people wrote: which there are, and marks around them that say they are meant as text."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LITERAL_START, LITERAL_END = "\U000f0000", "\U000f0001"
"""Private characters around a control token that is meant as text; content cannot hold them (see `messages`)."""

# Gemma keeps these as single tokens. They are text that happens to be in the vocabulary, and open nothing.
_HTML_ELEMENTS = (
    "table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code|p|a|li|ul|ol"
)
_PLAIN_TEXT_TOKEN = re.compile(rf"\s*|</?({_HTML_ELEMENTS})>")


def read_control_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Every added token that is more than blanks or an HTML element, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special or not _PLAIN_TEXT_TOKEN.fullmatch(token.content)}
    return tuple(sorted(names - {""}, key=lambda name: (-len(name), name)))


_KNOWN_KEYS = {"role", "content", "reasoning_content", "thinking", "tool_calls", "tool_call_id", "name", "id"} | {
    "type",
    "function",
    "arguments",
    "description",
    "parameters",
    "properties",
}
"""Keys that every dialogue has, in the same sense."""


class ControlTokenMarker:
    """Puts marks around control tokens, and where a template's text could complete one.

    Templates write `<function=` + name + `>`, so a name that ends like a token without its `>` would become one.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        self._token_pattern = re.compile("|".join(map(re.escape, names)) or "(?!)")  # the first that fits wins
        self._first_characters = frozenset(name[0] for name in names)
        self._max_length = max(map(len, names), default=0)
        self._inner_parts = "\n".join(name[1:-1] for name in names)
        cuts = [(name, n) for name in names for n in range(1, len(name))]
        self._prefixes = frozenset(name[:n] for name, n in cuts if _is_distinctive(name[:n]))
        self._suffixes = frozenset(name[n:] for name, n in cuts if _is_distinctive(name[n:]))
        self._prefix_last_characters = frozenset(head[-1] for head in self._prefixes)
        self._suffix_first_characters = frozenset(tail[0] for tail in self._suffixes)

    def mark(self, value: Any) -> Any:
        """The same messages or tools with every control token between LITERAL_START and LITERAL_END.

        Raises DataError for one in a key, which templates write out too. Roles are ours and stay as they are.
        """
        if isinstance(value, str):
            return self._mark_text(value)
        if isinstance(value, dict):
            for key in value.keys() - _KNOWN_KEYS:
                self._check_key(key)
            return {key: item if key == "role" else self.mark(item) for key, item in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list | tuple) else value

    def split_at_marks(self, text: str) -> Iterator[tuple[int, str, bool]]:
        """A rendered text in pieces: where each begins, its text, and whether it is a control token meant as text.

        Templates take strings apart and may leave a mark alone; it still keeps its sides from joining into a token.
        """
        begin, opened = 0, False
        for found in re.finditer(f"[{LITERAL_START}{LITERAL_END}]|$", text):
            piece = text[begin : found.start()]
            if piece:
                yield (
                    begin,
                    piece,
                    opened and found[0] == LITERAL_END and self._token_pattern.fullmatch(piece) is not None,
                )
            begin, opened = found.end(), found[0] == LITERAL_START

    def _mark_text(self, text: str) -> str:
        begins, ends = self._touches_token(text.strip())
        if not any(first in text for first in self._first_characters):  # far faster than the pattern
            marked = text
        else:
            marked = self._token_pattern.sub(rf"{LITERAL_START}\g<0>{LITERAL_END}", text)
        if begins or ends:
            # Within the blanks, which templates trim.
            bare = marked.strip()
            marked = marked.replace(bare, (LITERAL_END if begins else "") + bare + (LITERAL_END if ends else ""))
        return marked

    def _check_key(self, key: str) -> None:
        found = self._token_pattern.search(key)
        if found:
            raise DataError(f"the key {key!a} holds the control token {found[0]!a}; rename it")
        if any(self._touches_token(key.strip())):
            raise DataError(f"the key {key!a} begins or ends with a part of a control token; rename it")

    def _touches_token(self, text: str) -> tuple[bool, bool]:
        """Whether a text begins, and whether it ends, within a control token."""
        if len(text) < self._max_length and _is_distinctive(text) and text in self._inner_parts:
            return True, True
        lengths = range(2, self._max_length)
        begins = text[:1] in self._suffix_first_characters and any(text[:n] in self._suffixes for n in lengths)
        return begins, text[-1:] in self._prefix_last_characters and any(text[-n:] in self._prefixes for n in lengths)


def _is_distinctive(part: str) -> bool:
    """Whether a part of a token is more than a letter or a piece of a word."""
    return len(part) > 1 and re.search(r"\W", part) is not None
