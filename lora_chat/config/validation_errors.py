"""Messages for the problems that pydantic finds in a recipe, each with the file and line of the setting."""

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, ValidationError

from lora_chat.config.data import SourceSection
from lora_chat.config.recipe import Recipe

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

KeyPath = tuple[str, ...]
_MAX_REPORTED_ERRORS = 20
"""Maximum number of errors in one message."""
MAX_KEY_LENGTH = 100
"""Maximum length of a key in a message, in characters."""


def format_validation_errors(error: ValidationError, tree: object, locations: Mapping[KeyPath, str], file: str) -> str:
    """Return one line per problem, without repetitions; `locations` has the file and line of each key."""
    lines: dict[str, None] = {}
    for problem in _relevant_problems(error):
        if len(lines) == _MAX_REPORTED_ERRORS:
            lines["... and more errors."] = None
            break
        lines[_format_problem(problem, tree, locations, file)] = None
    return "\n".join(lines)


def _relevant_problems(error: ValidationError) -> Sequence["ErrorDetails"]:
    """Return the problems without those of alternative types that the user did not mean."""
    problems = error.errors()
    # A source may be a string, a section or a list of these. A problem inside the section is the relevant one.
    other_types = {"model_type", "tuple_type", "string_type"}
    in_sources = [p for p in problems if SourceSection.__name__ in str(p["loc"]) and p["type"] not in other_types]
    return in_sources or [p for p in problems if p["type"] != "model_type"] or problems


def _format_problem(problem: "ErrorDetails", tree: object, locations: Mapping[KeyPath, str], file: str) -> str:
    keys = _find_written_keys(problem["loc"], tree, needed=problem["type"] == "missing")
    where = next((locations[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in locations), file)
    dotted = ".".join(key[:MAX_KEY_LENGTH] for key in keys)
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key {dotted}.{suggest_key(keys[-1][:MAX_KEY_LENGTH], _list_known_keys(keys[:-1]))}"
    if problem["type"] == "missing":
        return f"{where}: {dotted} is needed." + (" Fix: name a file of dialogues." if dotted == "data" else "")
    return f"{where}: {dotted}: {_format_reason(problem)} (given: {shorten(problem['input'])})."


def _find_written_keys(loc: Sequence[str | int], tree: object, *, needed: bool) -> KeyPath:
    """Return the part of a problem's location that the user wrote; the rest names alternatives of a type."""
    keys: list[str] = []
    for part in loc:
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and part in range(len(tree)):
            tree = tree[int(part)]
        else:
            continue
        keys.append(str(part))
    return (*keys, str(loc[-1])) if needed else tuple(keys)


def _format_reason(problem: "ErrorDetails") -> str:
    message = problem["msg"].removeprefix("Input should be ").rstrip(".")
    return f"must be {message}" if message != problem["msg"] else message.removeprefix("Value error, ")


def _list_known_keys(keys: KeyPath) -> list[str]:
    """Return the keys of the section that a path leads to; empty if it does not lead to a section."""
    model: type[BaseModel] = Recipe
    for key in keys:
        if key.isdecimal():  # an index in a list of sections
            continue
        annotation = model.model_fields[key].annotation
        sections = [part for part in (annotation, *get_args(annotation)) if _is_section(part)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def suggest_key(key: str, known: list[str]) -> str:
    """Return a sentence with the known key that is most similar, or with all known keys."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]}?"
    return f" Known keys: {', '.join(known)}." if known else ""


def shorten(value: object) -> str:
    """Return the representation of a value in at most 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
