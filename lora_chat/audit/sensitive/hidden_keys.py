"""Keys of a vendor's format that are broken by blanks and line feeds, or encoded in base64 or as hexadecimal digits."""

import base64
import binascii
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.key_formats import KEY_FORMATS
from lora_chat.audit.sensitive.secrets import find_keys

_MIN_KEY_CHARACTERS = 20
_WORDLIKE_KEYWORDS = {"SK AC", "key-", "-us", "Q~", ":AA"}
_BREAKABLE_FORMATS = tuple(key for key in KEY_FORMATS if " ".join(key.keywords) not in _WORDLIKE_KEYWORDS)
"""Formats that are looked for in broken form; the others begin as words do."""
_KEYWORDS = sorted({word for key in _BREAKABLE_FORMATS for word in key.keywords})
_KEYWORDS_BY_SIGN = tuple(
    (
        sign,
        tuple(word for word in _KEYWORDS if (sign in word) and not any(s in word for s in "_-."[: "_-.".index(sign)])),
    )
    for sign in "_-."
)
"""First letters of keys by a sign in them, because most texts lack the sign."""
_KEYWORDS_WITHOUT_SIGN = tuple(word for word in _KEYWORDS if not any(sign in word for sign in "_-."))
_PIECE_RUN = re.compile(r"[A-Za-z0-9_.~+/=-]+(?:\s{1,40}[A-Za-z0-9_.~+/=-]+)+")
_RANDOM_LOOKING = re.compile(r"(?=\D*\d)(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])", re.ASCII)
_BLANK = re.compile(r"(?<!\s)[ \t]+(?!\s)")
_MIN_REST_AFTER_NEWLINE, _MIN_REST_AFTER_BLANK = 8, 16
"""Fewest characters behind a line feed or a blank that are taken for the rest of a key that is whole without them."""
_DIGIT = re.compile("[0-9]")
_PIECE = re.compile(r"\S+")
_ENCODED_RUN = re.compile(r"(?<![\w+/-])[\w+/-]{24,100000}={0,2}", re.ASCII)
_HEXADECIMAL = re.compile(r"(?:[0-9A-Fa-f]{2}){16,}")
_SEPARATORS = re.compile("[_-]")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def may_hold_broken_key(text: str) -> bool:
    """Cheap and never wrongly False: whether a key's first letters stand there when blanks are left out."""
    if len(text) < _MIN_KEY_CHARACTERS or _DIGIT.search(text) is None:
        return False
    joined = "".join(text.split())
    if len(joined) == len(text) or len(joined) < _MIN_KEY_CHARACTERS:
        return False
    for word in _KEYWORDS_WITHOUT_SIGN:
        if word in joined:
            return True
    for sign, words in _KEYWORDS_BY_SIGN:
        if sign in text:
            for word in words:
                if word in joined:
                    return True
    return False


def find_broken_keys(text: str, found: Sequence[TextMatch]) -> Iterator[TextMatch]:
    """Yield keys with blanks or line feeds in them; `found` are the keys that are whole.

    Each piece must look like a part of a key, not like a word. A whole key goes on behind a line feed only with what
    looks like one too, and with no other key.
    """
    whole = sorted((match.start, match.end) for match in found if match.kind == "secret")
    for match in _find_broken(text):
        place = bisect_left(whole, (match.start, 0))
        inside = whole[place : place + 2]
        if not inside or inside[0][0] >= match.end or _only_extends_key(text, match, inside):
            yield match


def _only_extends_key(text: str, match: TextMatch, inside: Sequence[tuple[int, int]]) -> bool:
    """Return whether a match only adds the rest to the first of the whole keys in it, and holds no other."""
    begins_alike = inside[0][0] == match.start and (len(inside) == 1 or inside[1][0] >= match.end)
    return begins_alike and _looks_like_rest(text[inside[0][1] : match.end]) and text[match.end : match.end + 1] != "@"


def _looks_like_rest(more: str) -> bool:
    """Return whether what follows a whole key is its rest: random characters, more of them behind a mere blank."""
    shortest = _MIN_REST_AFTER_BLANK if _BLANK.search(more) else _MIN_REST_AFTER_NEWLINE
    rest = "".join(more.split())
    return len(rest) >= shortest and _RANDOM_LOOKING.match(rest) is not None


def _find_broken(text: str) -> Iterator[TextMatch]:
    for found in _PIECE_RUN.finditer(text):
        pieces: list[re.Match[str]] = []
        for piece in _PIECE.finditer(text, *found.span()):
            if not _looks_like_key_part(piece[0]) and not (pieces and len(piece[0]) == len(pieces[-1][0]) <= 8):
                yield from _find_in_pieces(pieces)
                pieces = []
            else:
                pieces.append(piece)
        yield from _find_in_pieces(pieces)


def _looks_like_key_part(piece: str) -> bool:
    """Return whether a piece is no word: one character, digits, capitals inside, or signs at its end."""
    if len(piece) == 1 or piece[-1] in "_-" or "_" in piece:
        return True
    return any(c.isdigit() for c in piece) or piece[1:].lower() != piece[1:]


def _find_in_pieces(pieces: list[re.Match[str]]) -> Iterator[TextMatch]:
    if len(pieces) < 2 or sum(len(piece[0]) for piece in pieces) < _MIN_KEY_CHARACTERS:
        return
    joined = "".join(piece[0] for piece in pieces)
    places = [place for piece in pieces for place in range(*piece.span())]
    for match in find_keys(joined, _BREAKABLE_FORMATS):
        start, end = places[match.start], places[match.end - 1] + 1
        broken = end - start > match.end - match.start
        if broken and sum(c.isdigit() for c in joined[match.start : match.end]) >= 2:
            yield TextMatch(match.kind, match.detail, start, end, match.mark)


def find_encoded_keys(text: str) -> Iterator[TextMatch]:
    """Yield runs of base64 or hexadecimal digits whose text holds a key."""
    for found in _ENCODED_RUN.finditer(text):
        runs = [found[0], *_SEPARATORS.split(found[0])[1:], *found[0].split("_", 1)[1:]]
        keys = (
            key for run in runs if len(run) >= 24 for said in _decode_run(run) for key in find_keys(said, KEY_FORMATS)
        )
        match = next(keys, None)
        if match:
            yield TextMatch("secret", f"{match.detail}, encoded", found.start(), found.end(), match.mark)


def _decode_run(run: str) -> Iterator[str]:
    """Yield what a run says as hexadecimal digits or base64, where that is plain text."""
    if _HEXADECIMAL.fullmatch(run):
        yield from _ascii_text(bytes.fromhex(run))
    bare = run.rstrip("=").encode().translate(_URL_SAFE)
    try:
        yield from _ascii_text(base64.b64decode(bare[: len(bare) // 4 * 4] + _padded_last_group(bare)))
    except binascii.Error:
        return


def _padded_last_group(bare: bytes) -> bytes:
    """Return the last group, filled up; a single character says nothing."""
    rest = bare[len(bare) // 4 * 4 :]
    return rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b""


def _ascii_text(data: bytes) -> Iterator[str]:
    if data and not data.translate(None, bytes(range(32, 127)) + b"\t\r\n"):
        yield data.decode("ascii")
