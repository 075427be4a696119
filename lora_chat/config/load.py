"""Strict YAML and `--set section.key=value` -> Recipe; every fault with its file and line."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from lora_chat.config.data import BUNDLED_TEMPLATES, SourceSection
from lora_chat.config.recipe import Recipe
from lora_chat.errors import RecipeError
from lora_chat.system.strict_yaml import MAX_RECIPE_CHARACTERS, compose_strict

KeyPath = tuple[str, ...]
_YAML_TAG_PREFIX = "tag:yaml.org,2002:"
_ALLOWED_TAGS = {"str", "int", "float", "bool", "null", "map", "seq"}
_PATH_KEYS = ("train", "validation")
_MAX_INTEGER = 2**53
"""Of whole numbers; beyond it they lose digits where they meet fractions."""
_MAX_REPORTED_ERRORS, _MAX_KEY_LENGTH = 20, 100
"""Most faults that are told at once, and most of a key that is."""
_EXPONENT_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def read_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `section.key=value` settings in order, check everything.

    Raises RecipeError with file and line (or the setting) of every fault. Relative data paths
    become absolute, counted from the recipe's folder; those of settings from the working directory.
    """
    path = Path(path)
    tree, locations = _read_yaml(path)
    for setting in settings:
        _apply_setting(tree, locations, setting)
    recipe = _validate(tree, locations, str(path))
    return _make_paths_absolute(recipe, path, locations)


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    try:
        text = _read_text(path)
    except OSError as error:
        raise RecipeError(f"Cannot read the recipe {path}: {error.strerror}.{_suggest_recipe(path)}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}).") from error
    try:
        root = compose_strict(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: not valid YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from error
    locations: dict[KeyPath, str] = {}
    if root is None:
        return {}, locations
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(f"{path}:1: a recipe is a list of sections (base:, data:, ...), not a single value.")
    tree = _construct_value(root, (), locations, path)
    return tree, locations


def _read_text(path: Path) -> str:
    """Read a regular file (or one that a shell hands over) up to the largest size; a device would never end."""
    with path.open(encoding="utf-8") as file:
        text = file.read(MAX_RECIPE_CHARACTERS + 1)
    if len(text) > MAX_RECIPE_CHARACTERS:
        raise RecipeError(f"{path}: a recipe has at most {MAX_RECIPE_CHARACTERS:,} characters.")
    return text


def _suggest_recipe(path: Path) -> str:
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""


def _construct_value(node: yaml.Node, at: KeyPath, locations: dict[KeyPath, str], path: Path) -> Any:
    """Plain values from YAML nodes, noting each key's line; nothing but words, numbers, lists and mappings."""
    where = locations[at] = f"{path}:{node.start_mark.line + 1}"
    kind = node.tag.removeprefix(_YAML_TAG_PREFIX)
    if kind not in _ALLOWED_TAGS:
        raise RecipeError(f"{where}: the tag {node.tag[:_MAX_KEY_LENGTH]} is not allowed in a recipe.")
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = f"{path}:{key_node.start_mark.line + 1}"
            if (
                not isinstance(key_node, yaml.ScalarNode)
                or key_node.tag.removeprefix(_YAML_TAG_PREFIX) not in _ALLOWED_TAGS
            ):
                raise RecipeError(f"{line}: keys are plain words.")
            key = str(key_node.value)
            if key in result:
                raise RecipeError(f"{line}: {key[:_MAX_KEY_LENGTH]} is given twice.")
            result[key] = _construct_value(value_node, (*at, key), locations, path)
            locations[(*at, key)] = line
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct_value(item, (*at, str(i)), locations, path) for i, item in enumerate(node.value)]
    try:
        value = _parse_scalar(node.value, kind, plain=getattr(node, "style", None) is None)
    except (yaml.YAMLError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise RecipeError(f"{where}: {_shorten(node.value)} is no {kind}.") from error
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise RecipeError(f"{where}: {_shorten(node.value)} is too large; whole numbers go up to {_MAX_INTEGER:,}.")
    return value


def _parse_scalar(text: str, kind: str, plain: bool) -> Any:
    """YAML 1.1 reads `2e-4` as text; every user means the number (and so do YAML 1.2 and JSON)."""
    if kind == "str":
        return float(text) if plain and _EXPONENT_NUMBER.fullmatch(text) else text
    return yaml.SafeLoader("").construct_object(yaml.ScalarNode(_YAML_TAG_PREFIX + kind, text))


def _apply_setting(tree: dict[str, Any], locations: dict[KeyPath, str], setting: str) -> None:
    name, equals, text = setting.partition("=")
    keys = tuple(name.strip().split("."))
    where = f"--set {setting}"
    if not equals or not all(keys):
        raise RecipeError(f"{where}: write --set section.key=value, for example --set training.epochs=1.")
    if keys[0] not in Recipe.model_fields:
        raise RecipeError(f"{where}: unknown section {keys[0]}.{_suggest_key(keys[0], list(Recipe.model_fields))}")
    if len(keys) != 2:
        raise RecipeError(f"{where}: name a section and a key, for example --set training.epochs=1.")
    try:
        root = compose_strict(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: the value is not valid YAML.") from error
    value = None if root is None else _construct_value(root, keys, {}, Path("--set"))
    section = tree.setdefault(keys[0], {})
    if not isinstance(section, dict):
        raise RecipeError(f"{locations.get(keys[:1], where)}: {keys[0]} is a section with keys, not a single value.")
    section[keys[1]] = value
    locations[keys] = where


def _validate(tree: dict[str, Any], locations: dict[KeyPath, str], name: str) -> Recipe:
    try:
        return Recipe.model_validate(_lists_to_tuples(tree))
    except ValidationError as error:
        lines: dict[str, None] = {}
        for line in _format_validation_errors(error, tree, locations, name):
            if len(lines) == _MAX_REPORTED_ERRORS:
                lines["... and more of this kind."] = None
                break
            lines[line] = None
        raise RecipeError("\n".join(lines)) from error


def _lists_to_tuples(value: Any) -> Any:
    """Strict pydantic wants a tuple where YAML has a list, and a float where it has an int."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value


def _format_validation_errors(
    error: ValidationError, tree: dict[str, Any], locations: dict[KeyPath, str], name: str
) -> Iterator[str]:
    problems = error.errors()
    # A source may be a text, a section or a list of these: what is said of the section is what was meant.
    others = {"model_type", "tuple_type", "string_type"}
    meant = [p for p in problems if SourceSection.__name__ in str(p["loc"]) and p["type"] not in others]
    for problem in meant or [p for p in problems if p["type"] != "model_type"] or problems:
        keys = _find_written_keys(problem["loc"], tree, needed=problem["type"] == "missing")
        where = next((locations[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in locations), name)
        dotted = ".".join(key[:_MAX_KEY_LENGTH] for key in keys)
        if problem["type"] == "extra_forbidden":
            suggestion = _suggest_key(keys[-1][:_MAX_KEY_LENGTH], _list_known_keys(keys[:-1]))
            yield f"{where}: unknown key {dotted}.{suggestion}"
        elif problem["type"] == "missing":
            yield f"{where}: {dotted} is needed." + (" Name a file of dialogues." if dotted == "data" else "")
        else:
            yield f"{where}: {dotted}: {_format_reason(problem)} (given: {_shorten(problem['input'])})."


def _find_written_keys(loc: Sequence[str | int], tree: Any, *, needed: bool) -> KeyPath:
    """The part of a problem's place that the user wrote; the rest names alternatives of a type."""
    keys: list[str] = []
    for part in loc:
        inside = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
        if part in inside:
            keys.append(str(part))
            tree = tree[part]
    return (*keys, str(loc[-1])) if needed else tuple(keys)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _format_reason(problem: Any) -> str:
    message = str(problem["msg"])
    message = message.removeprefix("Input should be ").rstrip(".")
    return f"must be {message}" if message != problem["msg"] else message.removeprefix("Value error, ")


def _list_known_keys(keys: KeyPath) -> list[str]:
    model: type[BaseModel] = Recipe
    for key in keys:
        if key.isdecimal():  # one of a list
            continue
        annotation = model.model_fields[key].annotation
        sections = [part for part in (annotation, *get_args(annotation)) if _is_section(part)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _suggest_key(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]}?"
    return f" Known here: {', '.join(known)}." if known else ""


def _make_paths_absolute(recipe: Recipe, path: Path, locations: dict[KeyPath, str]) -> Recipe:
    here = path.absolute().parent

    def absolute(keys: KeyPath, value: str | None) -> str | None:
        if value is None:
            return None
        start = Path.cwd() if locations.get(keys, "").startswith("--set") else here
        try:
            return str((start / Path(value).expanduser()).resolve())
        except (RuntimeError, ValueError) as error:  # no such user; a zero byte
            raise RecipeError(f"{locations.get(keys, path)}: {_shorten(value)} is no path: {error}.") from error

    def source(key: KeyPath, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(source(key, one) for one in value)
        if isinstance(value, SourceSection):
            return value.model_copy(update={"path": source(key, value.path)})
        return absolute(key, value)

    data = recipe.data.model_copy(update={key: source(("data", key), getattr(recipe.data, key)) for key in _PATH_KEYS})
    if recipe.data.template and recipe.data.template not in BUNDLED_TEMPLATES:
        data = data.model_copy(update={"template": absolute(("data", "template"), recipe.data.template)})
    questions = absolute(("evaluation", "questions"), recipe.evaluation.questions)
    evaluation = recipe.evaluation.model_copy(update={"questions": questions})
    output = recipe.output.model_copy(update={"name": recipe.output.name or _derive_run_name(path)})
    return recipe.model_copy(update={"data": data, "evaluation": evaluation, "output": output})


def _derive_run_name(path: Path) -> str:
    name = "".join(c if c.isalpha() or c.isdecimal() or c in "._-" else "-" for c in path.stem)
    return name[:_MAX_KEY_LENGTH].strip(".-_") or "run"


def format_recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `read_recipe` takes again."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
