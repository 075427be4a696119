"""International bank account numbers."""

import re
from collections.abc import Iterator

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.examples import load_examples

_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:([ -]?)[A-Z0-9]{4}(?:\1[A-Z0-9]{4}){1,6}(?:\1[A-Z0-9]{1,4})?)(?![A-Za-z0-9])",
    re.IGNORECASE,
)


def find_ibans(text: str) -> Iterator[TextMatch]:
    """Yield the numbers with the length of their country and a valid checksum (ISO 7064 mod 97-10)."""
    for match in _IBAN.finditer(text):
        length = _longest_valid(match[0])
        if length:
            yield TextMatch("personal_data", "IBAN", match.start(), match.start() + length, "[IBAN]")


def _longest_valid(candidate: str) -> int:
    """Return the length of the longest valid beginning, which ends with a group, or 0.

    Words in capitals may follow the number.
    """
    from stdnum import iban

    ends = [len(candidate), *(m.start() for m in reversed(list(re.finditer("[ -]", candidate))))]
    for end in ends:
        compact = re.sub("[ -]", "", candidate[:end]).upper()
        if len(compact) < 15:
            break
        if iban.is_valid(compact):
            return 0 if compact in load_examples().ibans else end
    return 0
