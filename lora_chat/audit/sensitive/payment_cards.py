"""Payment card numbers."""

import re
from collections.abc import Iterator

from lora_chat.audit.report import TextMatch

_CARD = re.compile(
    r"(?<![A-Za-z0-9_.,/=+-])(?<![0-9] )[2-6][0-9]{3}([ -]?)[0-9]{4,6}(?:\1[0-9]{2,6}){1,3}"
    r"(?![A-Za-z0-9_/=]|[.,-][0-9])"
)
_ISSUERS = (
    # Prefixes and lengths: ISO/IEC 7812 and the issuers' own pages
    ("4", (13, 16, 19)),
    *((str(p), (16,)) for p in range(51, 56)),
    *((str(p), (16,)) for p in range(2221, 2721)),
    *((p, (15,)) for p in ("34", "37")),
    *((p, (16, 19)) for p in ("6011", "644", "645", "646", "647", "648", "649", "65", "62")),
    *((p, (14,)) for p in ("300", "301", "302", "303", "304", "305", "36", "38", "39")),
    *((str(p), (16,)) for p in range(3528, 3590)),
    *((p, (16, 18, 19)) for p in ("5018", "5020", "5038", "5893", "6304", "6759", "6761", "6762", "6763")),
)
_LENGTHS_BY_PREFIX = dict(_ISSUERS)
_DIGIT_GROUPINGS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1), (6, 13), (15,), (16,)}
_TEST_NUMBERS = frozenset(
    # What Stripe, PayPal and Adyen publish for trying out
    [
        "4111111111111111",
        "4242424242424242",
        "4012888888881881",
        "4000056655665556",
        "4000000000000002",
        "5555555555554444",
        "5105105105105100",
        "5200828282828210",
        "2223003122003222",
        "378282246310005",
        "371449635398431",
        "6011111111111117",
        "6011000990139424",
        "30569309025904",
        "38520000023237",
        "3530111333300000",
        "3566002020360505",
        "4917610000000000",
    ]
)


def find_cards(text: str) -> Iterator[TextMatch]:
    """Numbers with an issuer's prefix and length, a card's grouping and a right Luhn digit."""
    for found in _CARD.finditer(text):
        groups = re.split("[ -]", found[0])
        digits = "".join(groups)
        if tuple(map(len, groups)) in _DIGIT_GROUPINGS and digits not in _TEST_NUMBERS and _is_card(digits):
            yield TextMatch("personal_data", "card number", found.start(), found.end(), "[CARD]")


def _is_card(digits: str) -> bool:
    from stdnum import luhn

    lengths = next((_LENGTHS_BY_PREFIX[digits[:n]] for n in (4, 3, 2, 1) if digits[:n] in _LENGTHS_BY_PREFIX), ())
    return len(digits) in lengths and len(set(digits)) > 3 and luhn.is_valid(digits)
