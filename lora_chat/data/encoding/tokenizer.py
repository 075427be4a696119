"""Tokenize rendered texts and find the token at which a turn ends."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lora_chat.data.encoding.control_tokens import (
    LITERAL_END,
    LITERAL_START,
    ControlTokenMarker,
    find_tokens_without_embedding,
    read_control_tokens,
)
from lora_chat.errors import DataError
from lora_chat.system.bounded_call import call_with_timeout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = list[tuple[int, int]]
_MAX_CACHED_CHARACTERS, _MAX_CACHED_TEXTS = 200, 1000
_BASE_TIMEOUT_SECONDS, _SECONDS_PER_CHARACTER = 20.0, 1e-4
"""Timeout of tokenizing, in seconds and seconds per character; a tokenizer takes about a microsecond for each."""


_LOCKS: "WeakKeyDictionary[PreTrainedTokenizerBase, RLock]" = WeakKeyDictionary()
_LOCKS_LOCK = Lock()


def encoding_lock(tokenizer: "PreTrainedTokenizerBase") -> RLock:
    """Return the lock of a tokenizer that a thread holds while it encodes.

    Whether special tokens are split is a setting of the tokenizer and not of a call (transformers, `_encode_plus`), so
    that another thread would change the ids of a text that is being encoded.
    """
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(tokenizer, RLock())


@dataclass(frozen=True)
class TokenizedText:
    """A text and its ids; `offsets` are (first character, end) of each id, if the tokenizer reports them."""

    text: str
    ids: list[int]
    offsets: Offsets | None


def read_bos_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids that the tokenizer puts before every text, as in pretraining: BOS, or none."""
    begin = tokenizer.bos_token_id
    with encoding_lock(tokenizer):
        return [begin] if begin is not None and tokenizer("x")["input_ids"][:1] == [begin] else []


class TextTokenizer:
    """Tokenizer of rendered chats; a control token between marks is encoded as text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self._marker = ControlTokenMarker(read_control_tokens(tokenizer))
        self._added_ids = frozenset(tokenizer.added_tokens_encoder.values())
        self._normalised = _normalised_tokens(tokenizer)
        self._without_embedding = find_tokens_without_embedding(tokenizer)
        self._uses_regex = _uses_regex(tokenizer)
        self._lock = encoding_lock(tokenizer)
        with self._lock:
            self._newline_ids: list[int] = tokenizer.encode("\n", add_special_tokens=False)
        self._cached_ids: dict[str, list[int]] = {}

    def mark(self, value: Any) -> Any:
        """Return messages or tools with marks around their control tokens; raises DataError for one in a key."""
        return self._marker.mark(value)

    def encode_plain_text(self, text: str) -> list[int]:
        """Return the ids of a text without a chat template, without BOS and EOS; its control tokens are text."""
        return self.tokenize([self.mark(text)])[0].ids

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Encode texts with their control tokens; a control token between marks is text.

        Raises UnavailableError if the tokenizer's regular expressions take too long. They are untrusted and may
        backtrack without end.
        """
        with self._lock:
            if not self._uses_regex:
                return self._tokenize(texts)
            seconds = _BASE_TIMEOUT_SECONDS + _SECONDS_PER_CHARACTER * sum(map(len, texts))
            return call_with_timeout(
                lambda: self._tokenize(texts), seconds, "The tokenizer of the base (a regular expression)"
            )

    def _tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        marked = [LITERAL_START in text or LITERAL_END in text for text in texts]
        plain = iter(self._encode([text for text, is_marked in zip(texts, marked, strict=True) if not is_marked]))
        return [
            self._encode_marked(text) if is_marked else next(plain)
            for text, is_marked in zip(texts, marked, strict=True)
        ]

    def count_prefix_tokens(self, whole: TokenizedText, end: int) -> int | None:
        """Return the number of ids of the first `end` characters, or None if a token crosses that border.

        The ids must be the same for the first characters and for the whole text. Added tokens cut a text into parts
        that are encoded separately (tokenizers, `AddedVocabulary`), so only the part after the last added token is
        encoded again.
        """
        if end == len(whole.text):
            return len(whole.ids)
        if whole.offsets is None:
            prefix_ids = self.tokenize([whole.text[:end]])[0].ids
            return len(prefix_ids) if whole.ids[: len(prefix_ids)] == prefix_ids else None
        count = first = bisect_left(whole.offsets, (end, 0))
        while first > 0:
            first -= 1
            if whole.ids[first] in self._added_ids:
                break
        begin = whole.offsets[first][0] if first else 0
        return count if self._encode_cached(whole.text[begin:end]) == whole.ids[first:count] else None

    def _encode_cached(self, text: str) -> list[int]:
        """Return the ids of a text, cached if it is short, because templates open replies in the same few ways."""
        if text in self._cached_ids:
            return self._cached_ids[text]
        ids = self.tokenize([text])[0].ids
        if len(text) <= _MAX_CACHED_CHARACTERS and len(self._cached_ids) < _MAX_CACHED_TEXTS:
            self._cached_ids[text] = ids
        return ids

    def _encode(self, texts: list[str]) -> list[TokenizedText]:
        """Encode texts without marks."""
        if not texts:
            return []
        out = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        offsets = [encoding.offsets for encoding in out.encodings] if out.encodings else [None] * len(texts)
        encoded = [TokenizedText(*row) for row in zip(texts, out["input_ids"], offsets, strict=True)]
        for text in encoded if self._normalised else ():
            self._check_normalised(text)
        for text in encoded if self._without_embedding else ():
            self._check_embeddings(text.ids)
        return encoded

    def _check_embeddings(self, ids: list[int]) -> None:
        """Raise DataError if a token has no embedding in the model."""
        token = next((token for token in ids if token in self._without_embedding), None)
        if token is not None:
            name = self._without_embedding[token]
            raise DataError(
                f"the chat template writes the token {name!a}, for which the base has no embedding: its tokenizer was "
                "extended and its weights were not; use another template or base"
            )

    def _check_normalised(self, encoded: TokenizedText) -> None:
        """Raise DataError if normalisation made a control token of another spelling."""
        for token, (begin, end) in zip(encoded.ids, encoded.offsets or (), strict=bool(encoded.offsets)):
            name, text = self._normalised.get(token), encoded.text[begin:end].strip()
            if name is not None and text != name:
                raise DataError(f"the tokenizer reads {text!a} as the control token {name!a}; remove it")

    def _encode_marked(self, text: str) -> TokenizedText:
        """Encode a text piece by piece, so that no token crosses a mark.

        A piece is encoded after a line feed, whose ids are then removed, because SentencePiece adds a blank at the
        start of a text (transformers does the same in `utils/chat_template_utils.py`).
        """
        ids: list[int] = []
        offsets: Offsets | None = []
        for begin, piece, as_text in self._marker.split_at_marks(text):
            if as_text:
                new = self._encode_literal(piece)
                new_offsets: Offsets | None = [(begin, begin + len(piece))] * len(new)
            else:
                encoded = self._encode(["\n" + piece])[0] if begin else None
                skip = len(self._newline_ids)
                if encoded is None or encoded.ids[:skip] != self._newline_ids:
                    encoded, skip = self._encode([piece])[0], 0
                new, shift = encoded.ids[skip:], begin - (1 if skip else 0)
                new_offsets = encoded.offsets and [
                    (start + shift, end + shift) for start, end in encoded.offsets[skip:]
                ]
            ids += new
            if offsets is None or new_offsets is None:
                offsets = None
            else:
                offsets += new_offsets
        return TokenizedText(text, ids, offsets)

    def _encode_literal(self, text: str) -> list[int]:
        """Return the ids of a control token as text; raises DataError if none exist.

        `split_special_tokens` still joins added tokens that are not special, so these are encoded in two halves.
        """
        for parts in ([text], [text[:1], text[1:]]):
            ids: list[int] = []
            for part in parts:
                new = self.tokenizer.encode("\n" + part, add_special_tokens=False, split_special_tokens=True)
                ids += (
                    new[len(self._newline_ids) :]
                    if new[: len(self._newline_ids)] == self._newline_ids
                    else self._encode_plain(part)
                )
            if not self._added_ids & set(ids):
                return ids
        raise DataError(f"the tokenizer cannot encode the control token {text!a} as text; remove it")

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids


def _uses_regex(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether a tokenizer splits or normalises texts by regular expressions from its file."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [] if backend is None else [backend.normalizer, backend.pre_tokenizer]
    return any(b'"Regex"' in part.__getstate__() for part in parts if part is not None)


def _normalised_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Return the control tokens that are searched after normalisation, so that other spellings become them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is None:
        return {}
    names = set(read_control_tokens(tokenizer))
    added = tokenizer.added_tokens_decoder.items()
    return {number: token.content for number, token in added if token.normalized and token.content in names}
