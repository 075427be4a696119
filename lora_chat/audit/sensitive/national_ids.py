"""National identity, tax and social security numbers of people, with the formats in `national_id_formats.json`."""

import importlib
import re
from collections.abc import Callable, Iterator
from functools import cache, cached_property

from pydantic import TypeAdapter

from lora_chat.audit.data_files import load_data_file
from lora_chat.audit.report import TextMatch
from lora_chat.audit.sensitive.cue_words import compile_words
from lora_chat.config.base import NonEmptyStr, StrictModel

_KEYWORD_DISTANCE_CHARACTERS = 60
"""Maximum distance of a keyword before a number, in characters."""
_DIGIT_RUN = re.compile(r"[0-9](?:[ .()/-]{0,2}[0-9]){6,}")
_DIGITS_TO_ZERO = bytes(48 if 48 <= b <= 57 else b for b in range(256))
_ID_WITH_LETTERS = re.compile(
    r"[A-Z]{2}(?:[A-Z]{3}(?:[A-Z][0-9LMNP-V]{2}[A-EHLMPRST]|[0-9]{4}[A-Z])|[A-Z]{2}[0-9]{6}[HM]|"
    r" ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D])"
)
"""Pattern of Italian, Indian, Mexican and British numbers, which have fewer than seven digits in a row."""
_NUMBER_START = re.compile("(?<![A-Za-z0-9])[A-Z0-9]")


class NationalIdFormat(StrictModel):
    """A format of national ids, found in a distinctive form, or in an ambiguous form after a keyword."""

    detail: NonEmptyStr
    """Name of the format in findings."""
    checksum_module: str = ""
    """Module of python-stdnum with the checksum; empty if the number has none."""
    distinctive_pattern: str = ""
    """Pattern of a form that hardly any other number has."""
    ambiguous_pattern: str = ""
    """Pattern of a form that other numbers have too. A keyword must be near."""
    keywords: tuple[NonEmptyStr, ...] = ()
    """Patterns of the keywords, regardless of case. They match whole words only."""
    source: str = ""
    """Documentation of the format."""

    @cached_property
    def distinctive_regex(self) -> re.Pattern[str] | None:
        """Return the compiled pattern of the distinctive form."""
        return _compile_bounded(self.distinctive_pattern)

    @cached_property
    def ambiguous_regex(self) -> re.Pattern[str] | None:
        """Return the compiled pattern of the ambiguous form."""
        return _compile_bounded(self.ambiguous_pattern)

    @cached_property
    def keyword_regex(self) -> re.Pattern[str] | None:
        """Return the compiled pattern of the keywords."""
        return compile_words(self.keywords) if self.keywords else None


def _compile_bounded(pattern: str) -> re.Pattern[str] | None:
    """Return a pattern of numbers that do not touch other letters and digits."""
    if not pattern:
        return None
    return re.compile(rf"(?<![A-Za-z0-9])(?<![0-9][.,/_-])(?:{pattern})(?![A-Za-z0-9]|[.,/_-][0-9])")


@cache
def load_national_id_formats() -> tuple[NationalIdFormat, ...]:
    """Return all formats of national ids."""
    return load_data_file("sensitive", "national_id_formats.json", TypeAdapter(tuple[NationalIdFormat, ...]))


def may_contain_number(text: str) -> bool:
    """Return False only if a text cannot contain a national id or a phone, card or account number."""
    without_separators = text.encode("utf-8", "replace").translate(_DIGITS_TO_ZERO, b" .()/-")
    has_digit_run = b"0000000" in without_separators and _DIGIT_RUN.search(text) is not None
    return has_digit_run or _ID_WITH_LETTERS.search(text) is not None


def find_national_ids(text: str) -> Iterator[TextMatch]:
    """Yield the numbers with a valid checksum, in their distinctive form or after a keyword."""
    for start in _find_starts(text):
        for id_format in load_national_id_formats():
            distinctive, ambiguous = id_format.distinctive_regex, id_format.ambiguous_regex
            keyword = id_format.keyword_regex
            match = distinctive.match(text, start) if distinctive else None
            if not match and ambiguous and keyword:
                match = ambiguous.match(text, start)
                if match and not keyword.search(text, max(0, start - _KEYWORD_DISTANCE_CHARACTERS), start):
                    continue
            if match and _is_valid(id_format.checksum_module, match[0]):
                yield TextMatch("personal_data", id_format.detail, match.start(), match.end(), "[ID]")


def _find_starts(text: str) -> list[int]:
    """Return the offsets where a number can begin: the first digit or capital of a word, near a run of digits."""
    starts: set[int] = set()
    for match in (*_DIGIT_RUN.finditer(text), *_ID_WITH_LETTERS.finditer(text)):
        starts.update(m.start() for m in _NUMBER_START.finditer(text, max(0, match.start() - 12), match.end()))
    return sorted(starts)


def _is_valid(module: str, number: str) -> bool:
    """Return whether the checksum is valid and the digits are not a sequence such as 123456789."""
    digits = "".join(filter(str.isdigit, number))
    invented = (len(set(digits)) < 3 and len(digits) > 6) or digits in "01234567890" or digits in "09876543210"
    return not invented and (not module or _load_validator(module)(number))


@cache
def _load_validator(module: str) -> Callable[[str], bool]:
    """Return the checksum function of a module of python-stdnum."""
    valid: Callable[[str], bool] = importlib.import_module(f"stdnum.{module}").is_valid
    return valid
