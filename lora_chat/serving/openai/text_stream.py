"""Token ids of a reply -> pieces of its text while it is generated, up to a stop text.

The pieces are, joined, exactly the text that `decode_reply` and `decode_continuation` return for all ids: text that a
later token can change is kept back. Transformers and tokenizers decode ids only as a whole.
"""

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_chat.inference.text_decoder import TextDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_WINDOW_TOKENS, _CONTEXT_TOKENS = 64, 16
"""Number of tokens that are decoded together, and number of earlier ones with which the next window begins."""
_REPLACEMENT = "\ufffd"
"""Character that decoders write for bytes that are not, or not yet, a character."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class TextStream:
    """The text of one reply, token by token."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", decoder: TextDecoder, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._decoder = tokenizer, decoder
        self._ids: list[int] = list(decoder.context)
        self._window, self._window_text = 0, decoder.decode_separately(self._ids) if self._ids else ""
        # Bytes of the prompt that are not a character yet may become one together with the reply.
        self._keeps_all = self._window_text.endswith(_REPLACEMENT)
        self._cleans_blanks = _cleans_blanks(tokenizer)
        self._in_bytes = False
        """Whether the text ends with byte tokens, which `ByteFallback` of tokenizers decodes together."""
        self._decoded: list[str] = []
        self._stops = StopSearch(stops)
        self.starts: list[int] = []
        """Number of characters of the text before each token; a token inside of a character has its start."""
        self._decoded_length = 0

    @property
    def stopped(self) -> bool:
        """Return whether a stop text was found, so that the reply has ended."""
        return self._stops.found

    @property
    def length(self) -> int:
        """Return the number of characters of the text so far, without the stop text."""
        return self._stops.length

    def feed(self, token: int) -> str:
        """Return the text that is certain after a further token."""
        self._ids.append(token)
        if token not in self._decoder.hidden_ids:
            name = self._tokenizer.convert_ids_to_tokens(token)
            self._in_bytes = isinstance(name, str) and _BYTE_TOKEN.fullmatch(name) is not None
        self.starts.append(self._decoded_length)
        return "" if self._keeps_all or self.stopped else self._pass(self._decode_window())

    def close(self) -> str:
        """Return the rest of the text."""
        if self.stopped:
            return ""
        text, sent = self._decoder.decode(self._ids[len(self._decoder.context) :]), "".join(self._decoded)
        if not text.startswith(sent):
            logger.warning("A tokenizer decodes a whole reply differently from its beginning.")
            text = sent
        return self._pass(text[len(sent) :]) + self._stops.close()

    def _pass(self, text: str) -> str:
        """Return the part of decoded text that cannot begin a stop text."""
        self._decoded.append(text)
        self._decoded_length += len(text)
        return self._stops.feed(text)

    def _decode_window(self) -> str:
        """Return the new text of the window that no later token can change."""
        text = self._decoder.decode_separately(self._ids[self._window :])
        end = self._find_stable_end(text)
        if end < len(self._window_text) or not text.startswith(self._window_text):
            return ""
        new, self._window_text = text[len(self._window_text) : end], text[:end]
        if end == len(text) and len(self._ids) - self._window > _WINDOW_TOKENS:
            self._move_window(text)
        return new

    def _move_window(self, text: str) -> None:
        """Begin the window at a later token, if the text from there on is decoded as before."""
        window = len(self._ids) - _CONTEXT_TOKENS
        rest = self._decoder.decode_separately(self._ids[window:])
        # A decoder may remove the blank at the start of a text, so the rest must contain more than blanks.
        if rest.strip() and text.endswith(rest):
            self._window, self._window_text = window, rest

    def _find_stable_end(self, text: str) -> int:
        """Return the number of characters that no later token can change."""
        if self._in_bytes:
            return len(self._window_text)
        end = len(text.rstrip(_REPLACEMENT))
        return text.rfind(" ", 0, end) if self._cleans_blanks else end


class StopSearch:
    """The search for the stop text that is complete first; of several, the longest."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._buffer = tuple(stops), ""
        self._longest = max(map(len, stops), default=0)
        self.found = False
        self.length = 0
        """Number of characters that were returned."""

    def feed(self, text: str) -> str:
        """Return the text before a stop text, or the text that cannot begin one."""
        if self.found:
            return ""
        self._buffer += text
        matches = [(begin + len(stop), begin) for stop in self._stops if (begin := self._buffer.find(stop)) >= 0]
        if matches:
            self.found = True
            return self._release(min(matches)[1])
        return self._release(len(self._buffer) - self._count_open())

    def close(self) -> str:
        """Return the text that was kept back."""
        return "" if self.found else self._release(len(self._buffer))

    def _count_open(self) -> int:
        """Return the number of characters at the end that a stop text can begin with."""
        return next((n for n in range(self._longest - 1, 0, -1) if self._begins_stop(self._buffer[-n:], n)), 0)

    def _begins_stop(self, end: str, length: int) -> bool:
        return len(end) == length and any(stop.startswith(end) for stop in self._stops)

    def _release(self, end: int) -> str:
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        self.length += len(text)
        return text


def _cleans_blanks(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether decoding removes blanks before signs, which the next token decides (transformers, `_decode`)."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    name = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    return type(model).__name__ != "BPE" or bool(getattr(tokenizer, name, False))
