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


def pattern_of(names: Iterable[str]) -> re.Pattern[str]:
    """What matches any of these; the first that fits wins."""
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def mark(value: Any, pattern: re.Pattern[str]) -> Any:
    """The same messages or tools with every control token between OPEN and CLOSE.

    Raises DataError for one in a key, which templates write out too.
    """
    if isinstance(value, str):
        return pattern.sub(rf"{OPEN}\g<0>{CLOSE}", value)
    if isinstance(value, dict):
        for key in value:
            found = pattern.search(key)
            if found:
                raise DataError(f"the key {key!a} holds the control token {found[0]!a}; rename it")
        return {key: mark(item, pattern) for key, item in value.items()}
    return [mark(item, pattern) for item in value] if isinstance(value, list | tuple) else value


def unmarked(text: str) -> str:
    """Without marks."""
    return text.replace(OPEN, "").replace(CLOSE, "")


def pieces(text: str) -> Iterator[tuple[int, str, bool]]:
    """A rendered text in pieces: where each begins, its text, and whether control tokens in it are text.

    Templates take strings apart and may leave a mark alone; it still keeps its sides from joining into a token.
    """
    begin, inside = 0, False
    for found in re.finditer(f"[{OPEN}{CLOSE}]|$", text):
        end = found.start()
        if begin < end:
            yield begin, text[begin:end], inside and found[0] == CLOSE
        begin, inside = found.end(), found[0] == OPEN
