"""The arguments of the Python API's calls as the pipeline takes them."""

import re
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TypeAlias

from typing_extensions import TypedDict

from lora_chat.config.load import make_recipe, read_recipe
from lora_chat.config.recipe import Recipe
from lora_chat.errors import UsageError
from lora_chat.export.formats import EXPORT_FORMATS
from lora_chat.pipeline.held_out import EvaluationFiles
from lora_chat.pipeline.open_adapter import TrustOptions

PathText: TypeAlias = str | PathLike[str]
RecipeLike: TypeAlias = Recipe | PathText | Mapping[str, object]
"""A recipe, its file, the name of a bundled recipe, or its nested values."""


_LANGUAGE = re.compile(r"[a-z]{2,3}")


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
        return recipe
    if isinstance(recipe, Mapping):
        return make_recipe(recipe)
    if not isinstance(recipe, str | PathLike):
        raise UsageError(f"A recipe, its file or its name is needed, not {type(recipe).__name__}.")
    return read_recipe(recipe if isinstance(recipe, str) else Path(recipe))


def read_consent(consent: Consent) -> TrustOptions:
    """Return the decisions of the user."""
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


def check_format(name: str) -> str:
    """Return the name of an export format. Raise UsageError for another name."""
    if name not in EXPORT_FORMATS:
        raise UsageError(f"format={name!r}: not an export format. Fix: choose from {', '.join(EXPORT_FORMATS)}.")
    return name


def check_languages(codes: Sequence[str]) -> tuple[str, ...]:
    """Return codes of languages. Raise UsageError for any other text."""
    for code in codes:
        if isinstance(codes, str) or not _LANGUAGE.fullmatch(code):
            raise UsageError(f"languages={codes!a}: a list of codes of two or three small letters is needed.")
    return tuple(codes)


def optional_text(path: PathText | None) -> str | None:
    """Return a path as text, or None."""
    return None if path is None else fspath(path)


def optional_path(path: PathText | None) -> Path | None:
    """Return a path, or None."""
    return None if path is None else Path(path)
