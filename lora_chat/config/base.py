"""The base class and the field types that all sections of a recipe share."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

NonEmptyStr = Annotated[str, StringConstraints(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
MAX_NAMED_TOKENS = 1000
"""Largest number of tokens in a list of them."""


def _check_token(text: str) -> str:
    """Raise ValueError for a text that cannot be searched for as a token in messages."""
    if text != text.strip() or not text.isprintable():
        raise ValueError("a token has no blanks at its ends and only printable characters")
    return text


def check_unique(values: tuple[str, ...]) -> tuple[str, ...]:
    """Raise ValueError for a value that a list contains twice."""
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]!a} is in the list twice")
    return values


TokenText = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_check_token)]
UniqueTokens = Annotated[
    tuple[TokenText, ...], Field(min_length=1, max_length=MAX_NAMED_TOKENS), AfterValidator(check_unique)
]


class StrictModel(BaseModel):
    """A frozen model without unknown keys and silent conversions; the docstrings of its fields are descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
