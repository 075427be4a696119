"""National identity, tax and social security numbers of people."""

import importlib
import re
from collections.abc import Callable, Iterator
from functools import cache

from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.national_id_formats import NATIONAL_IDS

_KEYWORD_DISTANCE_CHARACTERS = 60
"""Characters before a number in which its word may stand."""
_DIGIT_RUN = re.compile(r"[0-9](?:[ .()/-]{0,2}[0-9]){6,}")
_DIGITS_TO_ZERO = bytes(48 if 48 <= b <= 57 else b for b in range(256))
_ID_WITH_LETTERS = re.compile(
    r"[A-Z]{2}(?:[A-Z]{3}(?:[A-Z][0-9LMNP-V]{2}[A-EHLMPRST]|[0-9]{4}[A-Z])|[A-Z]{2}[0-9]{6}[HM]|"
    r" ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D])"
)
"""Italian, Indian, Mexican and British numbers with fewer than seven digits together."""
_NUMBER_START = re.compile("(?<![A-Za-z0-9])[A-Z0-9]")


def may_hold_number(text: str) -> bool:
    """Cheap, and never wrongly False for an id, a phone, card or account number."""
    close_up = text.encode("utf-8", "replace").translate(_DIGITS_TO_ZERO, b" .()/-")
    return (b"0000000" in close_up and _DIGIT_RUN.search(text) is not None) or _ID_WITH_LETTERS.search(text) is not None


def find_national_ids(text: str) -> Iterator[TextMatch]:
    """Numbers with a right checksum, in their own form or after a word that names them."""
    for start in _find_starts(text):
        for known in NATIONAL_IDS:
            found = known.distinctive_pattern.match(text, start) if known.distinctive_pattern else None
            if not found and known.ambiguous_pattern and known.keyword_pattern:
                found = known.ambiguous_pattern.match(text, start)
                if found and not known.keyword_pattern.search(
                    text, max(0, start - _KEYWORD_DISTANCE_CHARACTERS), start
                ):
                    continue
            if found and _is_valid(known.checksum_module, found[0]):
                yield TextMatch("personal_data", known.detail, found.start(), found.end(), "[ID]")


def _find_starts(text: str) -> list[int]:
    """Where a number may begin: at a digit or capital with no other before it, close to digits that belong together."""
    near: set[int] = set()
    for found in (*_DIGIT_RUN.finditer(text), *_ID_WITH_LETTERS.finditer(text)):
        near.update(m.start() for m in _NUMBER_START.finditer(text, max(0, found.start() - 12), found.end()))
    return sorted(near)


def _is_valid(module: str, number: str) -> bool:
    """Right by its checksum, and not 123456789 or the like."""
    digits = "".join(filter(str.isdigit, number))
    made_up = (len(set(digits)) < 3 and len(digits) > 6) or digits in "01234567890" or digits in "09876543210"
    return not made_up and (not module or _load_validator(module)(number))


@cache
def _load_validator(module: str) -> Callable[[str], bool]:
    valid: Callable[[str], bool] = importlib.import_module(f"stdnum.{module}").is_valid
    return valid
