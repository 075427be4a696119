"""Placeholders and published examples of keys, numbers and addresses, which are not findings."""

import re
from functools import cache, cached_property

from pydantic import TypeAdapter

from lora_chat.audit.data_files import load_data_file
from lora_chat.config.base import NonEmptyStr, StrictModel


class ExampleValues(StrictModel):
    """The content of `example_values.json`."""

    placeholder_patterns: tuple[NonEmptyStr, ...]
    """Patterns of values in place of a secret, such as `your_key`."""
    passwords: tuple[NonEmptyStr, ...]
    """Invented passwords in the recipes that come with lora_chat, as whole values."""
    phone_numbers: tuple[NonEmptyStr, ...]
    """Digits of the invented numbers in these recipes."""
    token_prefixes: tuple[NonEmptyStr, ...]
    """Beginning of the token that jwt.io shows to every visitor."""
    ibans: tuple[NonEmptyStr, ...]
    """Examples in the registry of ISO 13616 and in encyclopaedias."""
    card_numbers: tuple[NonEmptyStr, ...]
    """Numbers that Stripe, PayPal and Adyen publish for tests."""
    file_extensions: tuple[NonEmptyStr, ...]
    """Endings of file names, such as `icon@2x.png`, that look like addresses."""

    @cached_property
    def placeholder_regex(self) -> re.Pattern[str]:
        """Return the compiled pattern of all placeholders."""
        return re.compile("|".join(self.placeholder_patterns), re.IGNORECASE | re.DOTALL)


@cache
def load_examples() -> ExampleValues:
    """Return the example values."""
    return load_data_file("sensitive", "example_values.json", TypeAdapter(ExampleValues))


def is_placeholder(value: str) -> bool:
    """Return whether a value is a placeholder or a published example of a secret."""
    examples = load_examples()
    return (
        examples.placeholder_regex.search(value) is not None
        or value in examples.passwords
        or value.startswith(examples.token_prefixes)
        or len(set(value)) < 6
    )
