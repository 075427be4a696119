"""Private keys in the text of a reply: when they can be judged, and how their rest is dropped."""

import re
import string
from collections.abc import Sequence

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.normalize import decode_text, may_be_disguised_part
from lora_chat.serving.reply_filter.pieces import TOKEN_END

_HEADER = re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_LAST_LINE = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_DASHES = "-----"
_MAX_LAST_LINE_CHARACTERS = 80
_DECISIVE_CHARACTERS, _MAX_CHARACTERS = 400, 20_000
"""Number of characters of a private key that decide whether it is an example, and the maximum of all."""
_LINE_CHARACTERS = frozenset(string.ascii_letters + string.digits + "+/=")
_MIN_LINE_CHARACTERS = 16
"""Minimum length of the lines that continue a key which is longer than the maximum."""


def has_open_private_key(text: str) -> bool:
    """Return whether a text, as written or decoded, has the beginning of a private key but too little to judge it."""
    if _is_open("PRIVATE KEY" in text, text):
        return True
    if not may_be_disguised_part(text):
        return False
    decoded = decode_text(text, quoted_printable=True)
    return decoded is not None and _is_open("PRIVATE KEY" in decoded.text, decoded.text)


def _is_open(may_be_key: bool, text: str) -> bool:
    headers = list(_HEADER.finditer(text)) if may_be_key else []
    if not headers:
        return False
    body = text[headers[-1].end() :]
    end = body.find(_DASHES)
    if end >= 0:
        return not _LAST_LINE.match(body, end) and len(body) < end + _MAX_LAST_LINE_CHARACTERS
    return len(body.lstrip()) < _DECISIVE_CHARACTERS and len(body) < _MAX_CHARACTERS


def ends_in_private_key(matches: Sequence[TextMatch], text: str) -> bool:
    """Return whether the last value that was found in a text is a private key without its last line."""
    if not matches or matches[-1].detail != "private key" or matches[-1].end < len(text):
        return False
    key = text[matches[-1].start :]
    decoded = decode_text(key, quoted_printable=True) if may_be_disguised_part(key) else None
    return not any(
        last_line.end() == len(form)
        for form in (key, decoded.text if decoded else "")
        for last_line in _LAST_LINE.finditer(form)
    )


class PrivateKeyRest:
    """The rest of a private key, which is dropped as it arrives."""

    def __init__(self) -> None:
        self.has_ended = False
        self._dropped = 0
        self.is_in_line = False
        """Whether the text is within a line of a key that is longer than the maximum."""

    def find_end(self, text: str, start: int, is_last: bool) -> int:
        """Return the offset up to which a text is dropped; `has_ended` says whether the key ends there.

        `is_last` says that no more text comes. The end does not depend on how the text arrives.
        """
        if self._dropped >= _MAX_CHARACTERS:
            return self._find_line_end(text, start, is_last)
        dashes = text.find(_DASHES, start)
        if dashes < 0:
            end = len(text) if is_last else max(start, len(text) - len(_DASHES) + 1)
        else:
            last_line = _LAST_LINE.match(text, dashes)
            end = last_line.end() if last_line else dashes
            self.has_ended = bool(last_line) or is_last or len(text) - dashes >= _MAX_LAST_LINE_CHARACTERS
        limit = start + _MAX_CHARACTERS - self._dropped
        if end >= limit:
            end, self.has_ended, self.is_in_line = limit, False, True
        self._dropped += end - start
        return end

    def _find_line_end(self, text: str, start: int, is_last: bool) -> int:
        """Return the end of the blanks, or of the lines of random characters, after the maximum of a key."""
        if self.is_in_line:
            line_end = TOKEN_END.search(text, start)
            self.is_in_line = line_end is None
            return line_end.start() if line_end else len(text)
        rest = text[start:]
        blanks = len(rest) - len(rest.lstrip())
        if blanks:
            return start + blanks
        line = rest[:_MIN_LINE_CHARACTERS]
        if not _LINE_CHARACTERS.issuperset(line):
            self.has_ended = True
        elif len(line) == _MIN_LINE_CHARACTERS:
            self.is_in_line = True
        else:
            self.has_ended = is_last
        return start
