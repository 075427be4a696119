"""Keys that are broken by blanks and line feeds, or encoded in base64 or as hexadecimal digits."""

import base64
import binascii
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.key_formats import KeyFormat, load_key_formats
from lora_chat.audit.sensitive.secrets import find_keys

_MIN_KEY_CHARACTERS = 20
_PIECE_RUN = re.compile(r"[A-Za-z0-9_.~+/=-]+(?:\s{1,40}[A-Za-z0-9_.~+/=-]+)+")
_RANDOM_LOOKING = re.compile(r"(?=\D*\d)(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])", re.ASCII)
_BLANK = re.compile(r"(?<!\s)[ \t]+(?!\s)")
_MIN_REST_AFTER_NEWLINE, _MIN_REST_AFTER_BLANK = 8, 16
"""Minimum number of characters after a line feed, and after a blank, that can be the rest of a complete key."""
_DIGIT = re.compile("[0-9]")
_PIECE = re.compile(r"\S+")
_ENCODED_RUN = re.compile(r"(?<![\w+/-])[\w+/-]{24,100000}={0,2}", re.ASCII)
_HEXADECIMAL = re.compile(r"(?:[0-9A-Fa-f]{2}){16,}")
_SEPARATORS = re.compile("[_-]")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


@cache
def load_breakable_formats() -> tuple[KeyFormat, ...]:
    """Return the formats of keys that are searched for across blanks."""
    return tuple(key_format for key_format in load_key_formats() if key_format.may_be_broken)


@cache
def _load_keywords() -> tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """Return the keywords without a sign, and those with a sign by their first sign, because few texts contain it."""
    keywords = sorted({word for key_format in load_breakable_formats() for word in key_format.keywords})
    first_signs = {word: next((sign for sign in "_-." if sign in word), "") for word in keywords}
    by_sign = tuple((sign, tuple(word for word in keywords if first_signs[word] == sign)) for sign in "_-.")
    return tuple(word for word in keywords if not first_signs[word]), by_sign


def may_contain_broken_key(text: str) -> bool:
    """Return False only if a text without its blanks does not contain the keyword of a key."""
    if len(text) < _MIN_KEY_CHARACTERS or _DIGIT.search(text) is None:
        return False
    joined = "".join(text.split())
    if len(joined) == len(text) or len(joined) < _MIN_KEY_CHARACTERS:
        return False
    keywords_without_sign, keywords_by_sign = _load_keywords()
    for word in keywords_without_sign:
        if word in joined:
            return True
    for sign, keywords in keywords_by_sign:
        if sign in text:
            for word in keywords:
                if word in joined:
                    return True
    return False


def find_broken_keys(text: str, complete_matches: Sequence[TextMatch]) -> Iterator[TextMatch]:
    """Yield keys that contain blanks or line feeds; `complete_matches` are the keys that were found without them.

    Each piece must look like a part of a key, not like a word. A complete key can continue after a line feed, but only
    with characters that look random and do not contain another key.
    """
    complete = sorted((match.start, match.end) for match in complete_matches if match.kind == "secret")
    for match in _find_broken(text):
        first = bisect_left(complete, (match.start, 0))
        inside = complete[first : first + 2]
        if not inside or inside[0][0] >= match.end or _only_extends_key(text, match, inside):
            yield match


def _only_extends_key(text: str, match: TextMatch, inside: Sequence[tuple[int, int]]) -> bool:
    """Return whether a match only adds the rest to the first complete key in it, and contains no other key."""
    same_start = inside[0][0] == match.start and (len(inside) == 1 or inside[1][0] >= match.end)
    return same_start and _looks_like_rest(text[inside[0][1] : match.end]) and text[match.end : match.end + 1] != "@"


def _looks_like_rest(following: str) -> bool:
    """Return whether the text after a complete key is its rest: random characters, and more of them after a blank."""
    min_length = _MIN_REST_AFTER_BLANK if _BLANK.search(following) else _MIN_REST_AFTER_NEWLINE
    rest = "".join(following.split())
    return len(rest) >= min_length and _RANDOM_LOOKING.match(rest) is not None


def _find_broken(text: str) -> Iterator[TextMatch]:
    """Yield the keys in consecutive pieces that look like parts of a key, or have the length of the piece before."""
    for run in _PIECE_RUN.finditer(text):
        pieces: list[re.Match[str]] = []
        for piece in _PIECE.finditer(text, *run.span()):
            if looks_like_key_part(piece[0]) or (pieces and len(piece[0]) == len(pieces[-1][0]) <= 8):
                pieces.append(piece)
            else:
                yield from _find_in_pieces(pieces)
                pieces = []
        yield from _find_in_pieces(pieces)


def looks_like_key_part(piece: str) -> bool:
    """Return whether a piece differs from a word: one character, digits, capitals inside, or signs at its end."""
    if len(piece) == 1 or piece[-1] in "_-" or "_" in piece:
        return True
    return any(c.isdigit() for c in piece) or piece[1:].lower() != piece[1:]


def _find_in_pieces(pieces: list[re.Match[str]]) -> Iterator[TextMatch]:
    """Yield the keys in the joined pieces, with their offsets in the text."""
    if len(pieces) < 2 or sum(len(piece[0]) for piece in pieces) < _MIN_KEY_CHARACTERS:
        return
    joined = "".join(piece[0] for piece in pieces)
    offsets = [offset for piece in pieces for offset in range(*piece.span())]
    for match in find_keys(joined, load_breakable_formats()):
        start, end = offsets[match.start], offsets[match.end - 1] + 1
        broken = end - start > match.end - match.start
        if broken and sum(c.isdigit() for c in joined[match.start : match.end]) >= 2:
            yield TextMatch(match.kind, match.detail, start, end, match.mark)


def find_encoded_keys(text: str) -> Iterator[TextMatch]:
    """Yield runs of base64 or hexadecimal digits that decode to a text with a key."""
    for encoded in _ENCODED_RUN.finditer(text):
        runs = [encoded[0], *_SEPARATORS.split(encoded[0])[1:], *encoded[0].split("_", 1)[1:]]
        decoded_texts = (decoded for run in runs if len(run) >= 24 for decoded in _decode_run(run))
        keys = (key for decoded in decoded_texts for key in find_keys(decoded, load_key_formats()))
        match = next(keys, None)
        if match:
            yield TextMatch("secret", f"{match.detail}, encoded", encoded.start(), encoded.end(), match.mark)


def _decode_run(run: str) -> Iterator[str]:
    """Yield the text of a run of hexadecimal digits or base64, if it is plain ASCII."""
    if _HEXADECIMAL.fullmatch(run):
        yield from _ascii_text(bytes.fromhex(run))
    bare = run.rstrip("=").encode().translate(_URL_SAFE)
    try:
        yield from _ascii_text(base64.b64decode(bare[: len(bare) // 4 * 4] + _padded_last_group(bare)))
    except binascii.Error:
        return


def _padded_last_group(bare: bytes) -> bytes:
    """Return the last group with padding; empty if it is a single character, which encodes nothing."""
    rest = bare[len(bare) // 4 * 4 :]
    return rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b""


def _ascii_text(data: bytes) -> Iterator[str]:
    """Yield the bytes as text if all of them are printable ASCII."""
    if data and not data.translate(None, bytes(range(32, 127)) + b"\t\r\n"):
        yield data.decode("ascii")
