"""The formats of vendors' keys, from their documentation, in `key_formats.json`."""

import re
from functools import cache, cached_property
from typing import Annotated

from pydantic import Field, TypeAdapter

from lora_chat.audit.data_files import load_data_file
from lora_chat.config.base import NonEmptyStr, StrictModel


class KeyFormat(StrictModel):
    """A format of keys."""

    detail: NonEmptyStr
    """Name of the format in findings."""
    keywords: Annotated[tuple[NonEmptyStr, ...], Field(min_length=1)]
    """Parts of keys. A text without any of them cannot contain a key in this format."""
    pattern: NonEmptyStr
    may_touch_text: bool = True
    """Whether the format is so distinctive that a key is recognised between other letters and digits."""
    may_be_broken: bool = True
    """Whether keys are also searched for across blanks and line feeds. Keywords that resemble words exclude it."""
    source: str = ""
    """Documentation of the format."""

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """Return the compiled pattern, which matches only between other characters if the key may not touch text."""
        bounded = rf"(?<![A-Za-z0-9])(?:{self.pattern})(?![A-Za-z0-9])"
        return re.compile(self.pattern if self.may_touch_text else bounded, re.ASCII)


@cache
def load_key_formats() -> tuple[KeyFormat, ...]:
    """Return all formats of keys."""
    return load_data_file("sensitive", "key_formats.json", TypeAdapter(tuple[KeyFormat, ...]))
