"""The text and the bytes of single tokens, and log-probabilities in OpenAI's forms."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from lora_chat.inference.continuous.request import GeneratedToken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MIN_LOGPROB = -9999.0
"""Log-probability of a token that cannot follow, as in OpenAI's API, because JSON has no infinity."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_BLANK = "\u2581"
"""Character that SentencePiece writes for a blank."""


class TokenTexts:
    """The texts of a tokenizer's tokens. Joined, their bytes are the text, except for blanks that a decoder removes."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        self._added = {number: str(token.content) for number, token in tokenizer.added_tokens_decoder.items()}

    @cached_property
    def _decoder(self) -> str:
        """Return the description of the decoder that joins tokens."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        state = b"" if backend is None or backend.decoder is None else backend.decoder.__getstate__()
        return bytes(state).decode("utf-8")

    @cached_property
    def _bytes_of_characters(self) -> dict[str, int]:
        """Return the byte that each character of a byte-level vocabulary means (GPT-2, `bytes_to_unicode`)."""
        shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in shown]
        return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(others)}

    def read_bytes(self, token: int) -> bytes:
        """Return the bytes of a token in the text."""
        if token not in self._known:
            self._known[token] = self._find_bytes(token)
        return self._known[token]

    def _find_bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode("utf-8", "replace")
        name = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(name, str):
            return b""
        if '"ByteLevel"' in self._decoder and all(character in self._bytes_of_characters for character in name):
            return bytes(self._bytes_of_characters[character] for character in name)
        if '"ByteFallback"' in self._decoder and (byte := _BYTE_TOKEN.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        if _BLANK in self._decoder:
            return name.replace(_BLANK, " ").encode("utf-8", "replace")
        return str(self._tokenizer.decode([token])).encode("utf-8", "replace")

    def read_text(self, token: int) -> str:
        """Return the text of a token; bytes that are not a character become a replacement character."""
        return self.read_bytes(token).decode("utf-8", "replace")

    def describe(self, token: int, logprob: float) -> dict[str, object]:
        """Return a token with its log-probability in the form of chat completions."""
        content = self.read_bytes(token)
        text = content.decode("utf-8", "replace")
        return {"token": text, "logprob": finite(logprob), "bytes": list(content)}

    def describe_generated(self, item: GeneratedToken) -> dict[str, object]:
        """Return a generated token with its alternatives in the form of chat completions."""
        top = [self.describe(token, logprob) for token, logprob in item.top]
        return {**self.describe(item.token, item.logprob), "top_logprobs": top}

    def describe_legacy(self, items: Sequence[GeneratedToken], offsets: Sequence[int]) -> dict[str, object]:
        """Return generated tokens in the form of text completions; of two alternatives with one text, the first."""
        return {
            "tokens": [self.read_text(item.token) for item in items],
            "token_logprobs": [finite(item.logprob) for item in items],
            "top_logprobs": [self._describe_top(item.top) for item in items],
            "text_offset": list(offsets),
        }

    def _describe_top(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        texts: dict[str, float] = {}
        for token, logprob in top:
            texts.setdefault(self.read_text(token), finite(logprob))
        return texts


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can write."""
    return max(logprob, _MIN_LOGPROB) if logprob == logprob else _MIN_LOGPROB
