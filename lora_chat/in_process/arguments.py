"""The arguments of the Python API's calls as the pipeline takes them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TypeAlias, TypeVar

from typing_extensions import TypedDict

from lora_chat.config.load import check_recipe, make_recipe, read_recipe
from lora_chat.config.recipe import Recipe
from lora_chat.errors import UsageError
from lora_chat.pipeline.held_out import EvaluationFiles
from lora_chat.pipeline.open_adapter import TrustOptions

PathText: TypeAlias = str | PathLike[str]
RecipeLike: TypeAlias = Recipe | PathText | Mapping[str, object]
"""A recipe, its file, the name of a bundled recipe, or its nested values."""


_Item = TypeVar("_Item")
_LANGUAGE = re.compile(r"[a-z]{2,3}")


_EXAMPLES = {"gpu": "RTX 4090", "memory": "12GiB"}


class Consent(TypedDict, total=False):
    """Decisions about files of other people. By default nothing of theirs is used without a check."""

    base: PathText | None
    """Folder or hub id of the base; its digest is compared."""
    force_base: bool
    """Whether to use that base although its digest differs."""
    accept_template: bool
    """Whether the chat template that comes with the adapter may run."""
    signer: PathText | None
    """Public key with which a parcel must be signed."""
    adopt: bool
    """Whether to sign a run of another person, or of an older version, as the user's own."""


def read_recipe_like(recipe: RecipeLike) -> Recipe:
    """Return a recipe that is given in any form."""
    if isinstance(recipe, Recipe):
        return check_recipe(recipe)
    if isinstance(recipe, Mapping):
        return make_recipe(recipe)
    if not isinstance(recipe, str | PathLike):
        raise UsageError(f"A recipe, its file or its name is needed, not {type(recipe).__name__}.")
    return read_recipe(recipe if isinstance(recipe, str) else Path(recipe))


def read_consent(consent: Consent) -> TrustOptions:
    """Return the decisions of the user. Raise UsageError for an unknown name, such as a misspelled `signer`."""
    for name in consent.keys() - Consent.__annotations__.keys():
        raise UsageError(f"{name}: unknown argument. Fix: choose from {', '.join(Consent.__annotations__)}.")
    return TrustOptions(
        base=optional_text(consent.get("base")),
        force_base=consent.get("force_base", False),
        accept_template=consent.get("accept_template", False),
        signer=optional_path(consent.get("signer")),
        adopt=consent.get("adopt", False),
    )


def name_files(
    data: PathText | None, questions: PathText | None = None, general: PathText | None = None
) -> EvaluationFiles:
    """Return the user's files for an evaluation."""
    return EvaluationFiles(optional_text(data), optional_text(questions), optional_text(general))


def read_resume(resume: bool | PathText | None) -> bool | str:
    """Return whether to continue the newest run, or the path of the run to continue. Raise UsageError for no path."""
    if resume is None or isinstance(resume, bool):
        return bool(resume)
    if not isinstance(resume, str | PathLike) or not fspath(resume):
        raise UsageError(f"resume={resume!a}: the path of a run, True or False is needed.")
    return fspath(resume)


def read_sources(sources: PathText | Sequence[PathText]) -> list[str]:
    """Return the names of one or several adapters. Raise UsageError for an empty list."""
    several = [sources] if isinstance(sources, str | PathLike) else sources
    if not several:
        raise UsageError("No adapter is given to merge. Fix: give at least one.")
    return [fspath(source) for source in several]


def check_languages(codes: Sequence[str]) -> tuple[str, ...]:
    """Return codes of languages. Raise UsageError for any other text."""
    for code in codes:
        if isinstance(codes, str) or not _LANGUAGE.fullmatch(code):
            raise UsageError(f"languages={codes!a}: a list of codes of two or three small letters is needed.")
    return tuple(codes)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise UsageError for an argument that is not one of the choices."""
    if value not in choices:
        raise UsageError(f"{name}={value!a}: unknown. Fix: choose from {', '.join(choices)}.")


def check_text(name: str, value: str | None) -> None:
    """Raise UsageError for an argument that is not a text, such as a number without its unit. None is the default."""
    if not isinstance(value, str | None):
        raise UsageError(f"{name}={value!a}: a text is needed, such as {_EXAMPLES[name]!r}.")


def check_choices(quantization: str | None, thinking: str | None) -> None:
    """Raise UsageError for an unknown quantization or an unknown switch of thoughts. None is the default."""
    if quantization is not None:
        check_choice("quantization", quantization, ("4bit", "8bit", "none"))
    if thinking is not None:
        check_choice("thinking", thinking, ("on", "off"))


def check_count(name: str, value: int) -> None:
    """Raise UsageError for an argument that is not a whole number from 0."""
    if not isinstance(value, int) or value < 0:
        raise UsageError(f"{name}={value!a}: a whole number of at least 0 is needed.")


def read_list(name: str, values: Iterable[_Item]) -> list[_Item]:
    """Return the items of a list. Raise UsageError for a text, whose items are its letters."""
    if isinstance(values, str):
        raise UsageError(f"{name}={values!a}: a list is needed. Fix: {name}=[{values!a}].")
    return list(values)


def optional_text(path: PathText | None) -> str | None:
    """Return a path as text, or None."""
    return None if path is None else fspath(path)


def optional_path(path: PathText | None) -> Path | None:
    """Return a path, or None."""
    return None if path is None else Path(path)
