"""International bank account numbers."""

import re
from collections.abc import Iterator

from lora_chat.audit.report import TextMatch

_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:([ -]?)[A-Z0-9]{4}(?:\1[A-Z0-9]{4}){1,6}(?:\1[A-Z0-9]{1,4})?)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_EXAMPLE_IBANS = frozenset(
    # Standing examples of the registry (ISO 13616) and of encyclopaedias
    [
        "GB82WEST12345698765432",
        "GB29NWBK60161331926819",
        "GB33BUKB20201555555555",
        "DE89370400440532013000",
        "FR1420041010050500013M02606",
        "NL91ABNA0417164300",
        "ES9121000418450200051332",
        "CH9300762011623852957",
        "IT60X0542811101000000123456",
        "BE68539007547034",
        "AT611904300234573201",
        "PL61109010140000071219812874",
    ]
)


def find_ibans(text: str) -> Iterator[TextMatch]:
    """Numbers with a country's length and a right checksum (ISO 7064 mod 97-10)."""
    for found in _IBAN.finditer(text):
        end = _longest_valid(found[0])
        if end:
            yield TextMatch("personal_data", "IBAN", found.start(), found.start() + end, "[IBAN]")


def _longest_valid(candidate: str) -> int:
    """Length of the longest valid beginning that ends with a group: words in capitals may follow; 0 if none."""
    from stdnum import iban

    ends = [len(candidate), *(m.start() for m in reversed(list(re.finditer("[ -]", candidate))))]
    for end in ends:
        compact = re.sub("[ -]", "", candidate[:end]).upper()
        if len(compact) < 15:
            break
        if iban.is_valid(compact):
            return 0 if compact in _EXAMPLE_IBANS else end
    return 0
