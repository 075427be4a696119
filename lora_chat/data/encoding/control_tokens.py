"""Mark control tokens in content, so that they are encoded as text and cannot open a turn."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lora_chat.data.encoding.ordinary_tokens import LAST_RULE, find_ordinary_tokens, read_token_rule
from lora_chat.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LITERAL_START, LITERAL_END = "\U000f0000", "\U000f0001"
"""Private characters around a control token that is meant as text; `messages` refuses content that has them."""

KEPT_TOKENS_FIELD = "lora_chat_kept_tokens"
"""Setting of a tokenizer, and key in tokenizer_config.json of merged models: tokens that stay tokens in messages."""


def read_control_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Return every added token that is not ordinary text and is not kept, longest first."""
    return tuple(
        sorted(_find_control_tokens(tokenizer, read_token_rule(tokenizer)), key=lambda name: (-len(name), name))
    )


def depends_on_token_rule(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the rules of this version and of earlier ones give a tokenizer different control tokens."""
    return _find_control_tokens(tokenizer, 1) != _find_control_tokens(tokenizer, LAST_RULE)


def _find_control_tokens(tokenizer: "PreTrainedTokenizerBase", rule: int) -> frozenset[str]:
    """Return the control tokens by a rule. Text must not become a token without an embedding, even an ordinary one."""
    missing = find_tokens_without_embedding(tokenizer).values()
    ordinary = find_ordinary_tokens(tokenizer, rule) - (
        {name for name in missing if name.strip()} if rule > 1 else set()
    )
    names = {token.content for token in tokenizer.added_tokens_decoder.values()} - ordinary
    return frozenset(names - {"", *read_kept_tokens(tokenizer)})


def read_kept_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Return the added tokens that stay tokens in message text, without names that a base cannot keep."""
    names = tokenizer.init_kwargs.get(KEPT_TOKENS_FIELD)
    if not isinstance(names, list):
        return ()
    # The setting may come from an untrusted folder: a token with a role, or in the template, is never kept.
    reserved = {str(name) for name in tokenizer.special_tokens_map.values()}
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} - reserved
    template = str(tokenizer.chat_template or "")
    return tuple(sorted({name for name in names if isinstance(name, str) and name in added and name not in template}))


_LIMIT_ATTRIBUTE = "lora_chat_num_embeddings"


def limit_token_ids(tokenizer: "PreTrainedTokenizerBase", num_embeddings: int) -> None:
    """Record the number of embeddings of the model that a tokenizer belongs to."""
    setattr(tokenizer, _LIMIT_ATTRIBUTE, num_embeddings)


def read_token_limit(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the number of embeddings of the model that a tokenizer belongs to; None if unknown."""
    limit: int | None = getattr(tokenizer, _LIMIT_ATTRIBUTE, None)
    return limit


def find_tokens_without_embedding(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Return the added tokens beyond the embeddings of the base, which no text may contain."""
    limit = read_token_limit(tokenizer)
    if limit is None:
        return {}
    return {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if number >= limit}


_KNOWN_KEYS = {"role", "content", "reasoning_content", "thinking", "tool_calls", "tool_call_id", "name", "id"} | {
    "type",
    "function",
    "arguments",
    "description",
    "parameters",
    "properties",
}
"""Keys of dialogues whose names no user chose, so that they need no check."""


class ControlTokenMarker:
    """Marker of control tokens, and of text that the template's own text could complete to one.

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
        """Return messages or tools with every control token between LITERAL_START and LITERAL_END.

        Raises DataError for a control token in a key, because templates write out keys too. Roles are checked before,
        and are returned unchanged.
        """
        if isinstance(value, str):
            return self._mark_text(value)
        if isinstance(value, dict):
            for key in value.keys() - _KNOWN_KEYS:
                self._check_key(key)
            return {key: item if key == "role" else self.mark(item) for key, item in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list | tuple) else value

    def split_at_marks(self, text: str) -> Iterator[tuple[int, str, bool]]:
        """Yield the pieces of a rendered text: its start, its text, and whether it is a control token meant as text.

        Templates cut strings and may separate the two marks; a single mark still prevents its two sides from joining
        into a token.
        """
        begin, opened = 0, False
        for mark in re.finditer(f"[{LITERAL_START}{LITERAL_END}]|$", text):
            piece = text[begin : mark.start()]
            if piece:
                yield (
                    begin,
                    piece,
                    opened and mark[0] == LITERAL_END and self._token_pattern.fullmatch(piece) is not None,
                )
            begin, opened = mark.end(), mark[0] == LITERAL_START

    def _mark_text(self, text: str) -> str:
        """Return a text with marks around its control tokens and at ends that could join with the template's text."""
        begins, ends = self._touches_token(text.strip())
        if not any(first in text for first in self._first_characters):  # much faster than the pattern
            marked = text
        else:
            marked = self._token_pattern.sub(rf"{LITERAL_START}\g<0>{LITERAL_END}", text)
        if begins or ends:
            # The marks go inside the surrounding blanks, because templates trim these.
            bare = marked.strip()
            marked = marked.replace(bare, (LITERAL_END if begins else "") + bare + (LITERAL_END if ends else ""))
        return marked

    def _check_key(self, key: str) -> None:
        match = self._token_pattern.search(key)
        if match:
            raise DataError(f"the key {key!a} contains the control token {match[0]!a}; rename it")
        if any(self._touches_token(key.strip())):
            raise DataError(f"the key {key!a} begins or ends with part of a control token; rename it")

    def _touches_token(self, text: str) -> tuple[bool, bool]:
        """Return whether a text begins inside a control token, and whether it ends inside one."""
        if len(text) < self._max_length and _is_distinctive(text) and text in self._inner_parts:
            return True, True
        lengths = range(2, self._max_length)
        begins = text[:1] in self._suffix_first_characters and any(text[:n] in self._suffixes for n in lengths)
        return begins, text[-1:] in self._prefix_last_characters and any(text[-n:] in self._prefixes for n in lengths)


def _is_distinctive(part: str) -> bool:
    """Return whether part of a token is more than a letter or a piece of a word."""
    return len(part) > 1 and re.search(r"\W", part) is not None
