"""The `system` setting of a recipe: one system message for all dialogues that have none."""

from pathlib import Path

from pydantic import field_validator, model_validator

from lora_chat.config.base import NonEmptyStr, StrictModel
from lora_chat.errors import RecipeError

MAX_SYSTEM_CHARACTERS = 200_000
"""Largest number of characters of a system message."""


class SystemSection(StrictModel):
    """A system message for dialogues, as text or from a file."""

    text: NonEmptyStr | None = None
    """Text of the system message. Line feeds at its end are left out."""
    file: NonEmptyStr | None = None
    """UTF-8 file with the text, beside the recipe. The run stores its text."""
    replace: bool = False
    """Whether it also replaces the system messages that dialogues begin with."""

    @model_validator(mode="after")
    def _check_one_text(self) -> "SystemSection":
        if (self.text is None) == (self.file is None):
            raise ValueError("give either `text` or `file`")
        return self

    @field_validator("text")
    @classmethod
    def _check_text(cls, text: str | None) -> str | None:
        return text if text is None else check_system_text(text)


def check_system_text(text: str) -> str:
    """Return a system message without line feeds at its end; raises ValueError if nothing is left."""
    if not text.strip():
        raise ValueError("the system message is empty")
    if len(text) > MAX_SYSTEM_CHARACTERS:
        raise ValueError(f"the system message has more than {MAX_SYSTEM_CHARACTERS:,} characters")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the system message contains half a surrogate pair, which is not a character") from None
    return text.rstrip("\n")


def read_system_file(section: SystemSection, path: Path) -> SystemSection:
    """Return the section with the text of its file. Raise RecipeError if the file has no usable text."""
    try:
        if not path.is_file():
            raise RecipeError(f"data.system: there is no file {path}.")
        with path.open(encoding="utf-8-sig") as file:
            text = check_system_text(file.read(MAX_SYSTEM_CHARACTERS + 1))
    except OSError as error:
        raise RecipeError(f"data.system: cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"data.system: {path} is not UTF-8 text. Fix: save it as UTF-8.") from error
    except ValueError as error:
        raise RecipeError(f"data.system: {path}: {error}.") from error
    return SystemSection(text=text, replace=section.replace)
