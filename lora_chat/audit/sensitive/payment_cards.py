"""Payment card numbers."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated

from pydantic import Field, TypeAdapter

from lora_chat.audit.data_files import load_data_file
from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.examples import load_examples
from lora_chat.config.base import NonEmptyStr, StrictModel

_CARD = re.compile(
    r"(?<![A-Za-z0-9_.,/=+-])(?<![0-9] )[2-6][0-9]{3}([ -]?)[0-9]{4,6}(?:\1[0-9]{2,6}){1,3}"
    r"(?![A-Za-z0-9_/=]|[.,-][0-9])"
)
_DIGIT_GROUPINGS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1), (6, 13), (15,), (16,)}


class CardIssuer(StrictModel):
    """The numbers of an issuer, from ISO/IEC 7812 and the issuer's website."""

    issuer: NonEmptyStr
    prefixes: tuple[Annotated[str, Field(pattern=r"^[0-9]{1,4}(-[0-9]{1,4})?$")], ...]
    """First digits, or ranges of first digits such as `51-55`."""
    lengths: tuple[int, ...]
    """Numbers of digits."""


@cache
def load_card_lengths() -> dict[str, tuple[int, ...]]:
    """Return the possible numbers of digits by prefix."""
    issuers = load_data_file("sensitive", "card_issuers.json", TypeAdapter(tuple[CardIssuer, ...]))
    lengths: dict[str, tuple[int, ...]] = {}
    for issuer in issuers:
        for prefix in issuer.prefixes:
            first, _, last = prefix.partition("-")
            lengths |= {str(number): issuer.lengths for number in range(int(first), int(last or first) + 1)}
    return lengths


def find_cards(text: str) -> Iterator[TextMatch]:
    """Yield the numbers with the prefix and length of an issuer, the groups of a card and a valid Luhn digit."""
    for match in _CARD.finditer(text):
        groups = re.split("[ -]", match[0])
        digits = "".join(groups)
        if tuple(map(len, groups)) in _DIGIT_GROUPINGS and _is_card(digits):
            yield TextMatch("personal_data", "card number", match.start(), match.end(), "[CARD]")


def _is_card(digits: str) -> bool:
    """Return whether digits are a valid card number that is not a published example."""
    from stdnum import luhn

    lengths_by_prefix = load_card_lengths()
    lengths = next((lengths_by_prefix[digits[:n]] for n in (4, 3, 2, 1) if digits[:n] in lengths_by_prefix), ())
    is_possible = len(digits) in lengths and len(set(digits)) > 3
    return is_possible and digits not in load_examples().card_numbers and luhn.is_valid(digits)
