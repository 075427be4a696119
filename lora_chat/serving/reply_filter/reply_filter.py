"""The filter of one reply while it is written: text in, text without secrets and personal data out.

The cuts between searched parts depend on the text only, so that the output does not depend on how a reply arrives.
"""

import re

from lora_chat.audit.report import TextMatch
from lora_chat.serving.reply_filter.filter_settings import FilterSettings
from lora_chat.serving.reply_filter.pieces import MAX_TOKEN_CHARACTERS, TOKEN_END, UNIT
from lora_chat.serving.reply_filter.private_key import (
    PrivateKeyRest,
    ends_in_private_key,
    has_open_private_key,
)
from lora_chat.serving.reply_filter.stretch import (
    KEPT_CHARACTERS,
    MAX_STRETCH_CHARACTERS,
    MIN_VALUE_CHARACTERS,
    Stretch,
    offset_of_character,
    split_long_stretch,
)
from lora_chat.serving.reply_filter.value_search import ReplyFindings, ValueSearch

UNCHECKED = "unchecked"
"""Name of the count of parts that were too long to be checked."""
_CONTEXT_CHARACTERS = 256
"""Number of characters before a part that its search sees. The words that announce a value are nearer."""
_MIN_KNOWN_WORD_CHARACTERS = 16
_UNCHECKED_MARK = "[SECRET]"
_LONG_TOKEN = re.compile(r"eyJ[\w.-]{1000,}\Z", re.ASCII)
"""Pattern of a JSON web token that is broken by blanks and not complete."""


class ReplyFilter:
    """The filter of one text of a reply: its content, its reasoning, or the arguments of a tool call.

    `findings` is shared by the texts of one reply, so that a value that was replaced once is replaced in all of them.
    """

    def __init__(self, settings: FilterSettings, findings: ReplyFindings | None = None) -> None:
        self.findings = findings or ReplyFindings()
        self.blocked = False
        """Whether a value ended the reply. Nothing is returned after that."""
        self._settings = settings
        self._search = ValueSearch(settings, self.findings)
        self._stretch = Stretch()
        self._buffer = ""
        self._start = 0
        """Offset of the stretch in the buffer. Everything before it was sent."""
        self._seen = 0
        """Offset up to which the buffer has no end of a token."""
        self._raw_context, self._clean_context = "", ""
        self._private_key: PrivateKeyRest | None = None
        """Private key of which the rest is dropped."""
        self._drops_token = False
        self._output: list[str] = []

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of finds in the reply by kind."""
        return dict(self.findings.counts)

    def feed(self, text: str) -> str:
        """Return the part of the reply that can be sent after this text arrived."""
        return self._work(text, is_last=False)

    def close(self) -> str:
        """Return the rest of the reply."""
        return self._work("", is_last=True)

    def _work(self, text: str, is_last: bool) -> str:
        if self.blocked:
            return ""
        self._buffer += text
        while not self.blocked and self._step(is_last):
            pass
        if is_last and not self.blocked and self._stretch.end:
            self._send_stretch(is_last=True)
        self._buffer = "" if self.blocked else self._buffer[self._start :]
        self._seen, self._start = max(0, self._seen - self._start), 0
        output, self._output = "".join(self._output), []
        return output

    def _step(self, is_last: bool) -> bool:
        """Take the next unit of the buffer. Return False if it is not complete."""
        if self._private_key:
            return self._drop_private_key(self._private_key, is_last)
        at = self._start + self._stretch.end
        if self._drops_token:
            end = TOKEN_END.search(self._buffer, at)
            self._drops_token = end is None
            self._drop(end.start() if end else len(self._buffer))
            return end is not None
        if at >= len(self._buffer):
            return False
        end_at = self._find_unit_end(at, is_last)
        if end_at is None:
            return False
        unit = self._buffer[at:end_at]
        if len(unit) == MAX_TOKEN_CHARACTERS:
            self._replace_long_token(unit)
        elif self._add_unit(unit):
            self._end_stretch(unit, is_last)
        elif self._stretch.weight >= MAX_STRETCH_CHARACTERS:
            self._shorten_stretch()
        return True

    def _find_unit_end(self, at: int, is_last: bool) -> int | None:
        """Return the offset after the unit at `at`, or None if more of it may come."""
        is_token = not TOKEN_END.match(self._buffer, at)
        if is_token and not is_last and len(self._buffer) - at < MAX_TOKEN_CHARACTERS:
            end = TOKEN_END.search(self._buffer, max(at, self._seen))
            self._seen = end.start() if end else len(self._buffer)
            return end.start() if end else None
        unit = UNIT.match(self._buffer, at)
        end_at = unit.end() if unit else at + 1
        is_open = end_at == len(self._buffer) and self._buffer[at].isspace() and end_at - at <= 40
        return None if is_open and not is_last else end_at

    def _add_unit(self, unit: str) -> bool:
        """Add a unit to the stretch. Return whether the stretch can end after it."""
        if unit[0].isspace():
            text = self._buffer[self._start : self._start + self._stretch.end + len(unit)]
            return self._stretch.add_blanks(unit, text)
        if TOKEN_END.match(unit):
            return self._stretch.add_sign(is_wide=unit not in '"<>')
        is_distinctive = len(unit) >= _MIN_KNOWN_WORD_CHARACTERS and bool(self.findings.known)
        return self._stretch.add_token(unit, is_distinctive)

    def _end_stretch(self, last_unit: str, is_last: bool) -> None:
        """Send the stretch, unless it is a part of a private key that cannot be judged yet."""
        text = self._buffer[self._start : self._start + self._stretch.end]
        if self._stretch.is_suspicious and not is_last and has_open_private_key(text):
            return
        if not self._stretch.is_in_key:
            self._send_stretch(is_last)
            return
        self._stretch.is_in_key = False
        unsent = len(last_unit) if self._stretch.ends_plainly else 0
        self._drop(self._start + self._stretch.end - unsent)
        self._send(unsent, last_unit[len(last_unit) - unsent :])

    def _send_stretch(self, is_last: bool) -> None:
        """Send the whole stretch, searched if it can contain a value."""
        text = self._buffer[self._start : self._start + self._stretch.end]
        if self._stretch.is_in_key:
            self._drop(self._start + len(text))
        elif not self._stretch.is_suspicious or self._stretch.weight < MIN_VALUE_CHARACTERS:
            self._send(len(text), text)
        else:
            matches = self._send_searched(text, "")
            if not is_last and ends_in_private_key(matches, text):
                self._private_key = PrivateKeyRest()

    def _send_searched(self, text: str, following: str) -> list[TextMatch]:
        """Search the first part of the stretch and send it, or end the reply. Return the values that were found."""
        matches = self._search.find(self._raw_context, text, following)
        if matches and self._settings.mode == "block":
            self._block(text[: matches[0].start], matches[0].kind)
        elif self._settings.mode == "block" or not (
            matches or self.findings.known or self._raw_context != self._clean_context
        ):
            self._send(len(text), text)
        else:
            self._send(len(text), self._search.redact((self._raw_context, self._clean_context), text, following))
        return matches

    def _shorten_stretch(self) -> None:
        """Send the first part of a very long stretch. A value that may be longer than the rest is dropped with it."""
        text = self._buffer[self._start : self._start + self._stretch.end]
        if self._stretch.is_in_key:
            self._drop(self._start + len(text))
            return
        matches = self._search.find(self._raw_context, text)
        if ends_in_private_key(matches, text):
            self._send_stretch(is_last=False)
            return
        cut = split_long_stretch(text)
        across = [match for match in matches if match.start < cut < match.end]
        if across:
            cut = across[0].end if across[0].end < len(text) else across[0].start
        token = _LONG_TOKEN.search("".join(text.split()))
        if token or not cut:
            self._replace_rest(offset_of_character(text, token.start()) if token and cut else 0, UNCHECKED)
            return
        self._send_searched(text[:cut], text[cut:])
        if not self.blocked and cut < len(text):
            self._stretch.keep(text[cut:])

    def _replace_rest(self, cut: int, kind: str) -> None:
        """Send the stretch up to `cut`, a mark, and nothing more of the stretch."""
        text = self._buffer[self._start : self._start + self._stretch.end]
        if cut:
            self._send_searched(text[:cut], text[cut:])
        if self.blocked:
            return
        if self._settings.mode == "block":
            self._block("", kind)
            return
        self.findings.counts[kind] += 1
        self._send(len(text) - cut, _UNCHECKED_MARK)
        self._stretch.is_in_key = True

    def _replace_long_token(self, token: str) -> None:
        """Send the stretch before a token that is too long to be checked, and a mark in place of the token."""
        if self._stretch.end and not self._stretch.is_in_key:
            before = self._buffer[self._start : self._start + self._stretch.end]
            self._send_searched(before, token[:KEPT_CHARACTERS])
        if self.blocked:
            return
        if self._settings.mode == "block":
            self._block("", UNCHECKED)
            return
        self.findings.counts[UNCHECKED] += 1
        self._send(self._stretch.end + len(token), _UNCHECKED_MARK)
        self._drops_token = True

    def _drop_private_key(self, rest: PrivateKeyRest, is_last: bool) -> bool:
        """Drop the part of a private key that arrived. Return whether there is more to do with the buffer."""
        end = rest.find_end(self._buffer, self._start, is_last)
        has_moved = end > self._start
        self._drop(end)
        if rest.has_ended:
            self._private_key = None
        return rest.has_ended or (end < len(self._buffer) and (has_moved or rest.is_in_line))

    def _block(self, text: str, kind: str) -> None:
        """Send the text before a value and end the reply."""
        self.findings.counts[kind] += 1
        self._output.append(text)
        self.blocked = True

    def _send(self, length: int, clean: str) -> None:
        """Move text from the buffer to the output in its clean form."""
        self._output.append(clean)
        self._clean_context = (self._clean_context + clean)[-_CONTEXT_CHARACTERS:]
        self._drop(self._start + length)

    def _drop(self, end: int) -> None:
        """Remove the buffer up to an offset without sending it."""
        self._raw_context = (self._raw_context + self._buffer[max(self._start, end - _CONTEXT_CHARACTERS) : end])[
            -_CONTEXT_CHARACTERS:
        ]
        self._stretch.restart(end - self._start)
        self._start = end
