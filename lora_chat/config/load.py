"""Reading of recipes: strict YAML and `--set section.key=value`; every error has its file and line."""

import difflib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TypeAlias

import yaml
from pydantic import ValidationError

from lora_chat.config.bundled_recipes import find_recipe
from lora_chat.config.data import BUNDLED_TEMPLATES, Sources, SourceSection
from lora_chat.config.inherited_settings import find_inherited_settings
from lora_chat.config.recipe import GENERAL_CHOICES, EvaluationSection, Recipe
from lora_chat.config.system_message import SystemSection, read_system_file
from lora_chat.config.validation_errors import (
    MAX_KEY_LENGTH,
    KeyPath,
    format_validation_errors,
    shorten,
    suggest_key,
)
from lora_chat.errors import RecipeError
from lora_chat.system.strict_yaml import MAX_RECIPE_CHARACTERS, compose_strict

YamlValue: TypeAlias = "str | int | float | bool | list[YamlValue] | dict[str, YamlValue] | None"
logger = logging.getLogger(__name__)

_YAML_TAG_PREFIX = "tag:yaml.org,2002:"
_ALLOWED_TAGS = {"str", "int", "float", "bool", "null", "map", "seq"}
_PATH_KEYS = ("train", "validation", "test")
_NESTED_SECTIONS = {("evaluation", "generation")}
"""Sections inside a section, whose keys `--set` can change one by one."""
_REPLY_SETTINGS = ("metrics", "number_pattern", "replies", "samples", "max_new_tokens", "generation")
"""Keys of `evaluation` that another evaluation of the same adapter can change."""
_MAX_INTEGER = 2**53
"""Maximum absolute value of whole numbers. Larger ones are not exact as floating-point numbers."""
_EXPONENT_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def read_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe file or a bundled recipe, apply `section.key=value` settings in order, and validate the result.

    Raises RecipeError with the file and line (or the setting) of every error. Relative data paths become absolute:
    paths in the file start at the folder of the recipe, paths in settings at the working directory.
    """
    file = find_recipe(path)
    if file != Path(path):
        _check_only_one(str(path), file)
    return parse_recipe(_open_recipe(file), file, settings)


def _check_only_one(name: str, bundled: Path) -> None:
    """Raise RecipeError if the name of a bundled recipe is also the name of a recipe in the working directory."""
    own = Path(f"{name}.yaml")
    if own.is_file() and not own.samefile(bundled):
        raise RecipeError(
            f"{name} is a recipe of lora_chat, and {own} is here too. "
            f"Fix: name {own} for the file here, or {bundled} for the recipe of lora_chat."
        )


def parse_recipe(text: str, path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Validate the text of a recipe as `read_recipe` does; `path` is its file, which need not exist yet."""
    tree, locations = _parse_yaml(text, path)
    for setting in settings:
        _apply_setting(tree, locations, setting)
    recipe = _validate(tree, locations, str(path))
    for name in _find_left_files(tree, locations):
        logger.warning(
            f"data.train is replaced, but {name} is still the file of {path.name}. Fix: --set {name}=FILE, or "
            f"--set {name}=null."
        )
    return _make_paths_absolute(recipe, path, locations)


def make_recipe(sections: Mapping[str, object]) -> Recipe:
    """Return the recipe of nested values. Raise RecipeError, as `read_recipe` does; it has no file and no lines."""
    try:
        text = json.dumps(sections, ensure_ascii=False, default=_encode_value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"The recipe has a value that YAML could not have: {error}.") from error
    tree: dict[str, YamlValue] = json.loads(text)
    if not isinstance(tree, dict):
        raise RecipeError("A recipe must consist of sections (base, data, ...), not of a single value.")
    return _make_paths_absolute(_validate(tree, {}, "recipe"), Path("run.yaml"), {})


def check_recipe(recipe: Recipe) -> Recipe:
    """Validate a recipe again, because `model_copy` accepts any value. Raise RecipeError, as `read_recipe` does."""
    tree = recipe.model_dump(exclude_unset=True, warnings=False)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(format_validation_errors(error, tree, {}, "recipe")) from error


def format_setting(name: str, value: object) -> str:
    """Return a setting of Python in the form of `--set`. Raise RecipeError for a value that YAML cannot have."""
    try:
        return f"{name}={json.dumps(value, ensure_ascii=False, default=_encode_value, allow_nan=False)}"
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{name}: not a value of a recipe: {error}.") from error


def _encode_value(value: object) -> object:
    """Return a value of Python as JSON has it. Raise TypeError for values without such a form."""
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not text, a number, a list or a mapping")


def _validate(tree: Mapping[str, YamlValue], locations: Mapping[KeyPath, str], file: str) -> Recipe:
    """Return a recipe. Raise RecipeError with one line for each problem."""
    try:
        return Recipe.model_validate(_lists_to_tuples(dict(tree)))
    except ValidationError as error:
        raise RecipeError(format_validation_errors(error, tree, locations, file)) from error


def read_settings(settings: Sequence[str]) -> dict[str, YamlValue]:
    """Return the values of `section.key=value` settings as the tree of a recipe. Raise RecipeError."""
    tree: dict[str, YamlValue] = {}
    for setting in settings:
        _apply_setting(tree, {}, setting)
    return tree


def _find_left_files(tree: Mapping[str, YamlValue], locations: Mapping[KeyPath, str]) -> list[str]:
    """Return the files of evaluation in a recipe whose training data a setting replaced: they belong to other data."""
    if not locations.get(("data", "train"), "").startswith("--set"):
        return []
    files = ("data", "validation"), ("data", "test"), ("evaluation", "questions")
    values = {keys: section.get(keys[1]) for keys in files if isinstance(section := tree.get(keys[0]), dict)}
    return [
        ".".join(keys)
        for keys, value in values.items()
        if value is not None and not locations.get(keys, "").startswith("--set")
    ]


def change_evaluation(section: EvaluationSection, settings: Sequence[str]) -> EvaluationSection:
    """Return the section with `evaluation.key=value` settings of replies applied. Raise RecipeError for others."""
    changed: dict[str, YamlValue] = section.model_dump(mode="json")
    tree: dict[str, YamlValue] = {"data": {"train": "unused"}, "evaluation": changed}
    locations: dict[KeyPath, str] = {}
    for setting in settings:
        keys = setting.partition("=")[0].strip().split(".")
        if keys[0] != "evaluation" or keys[1:2] not in [[key] for key in _REPLY_SETTINGS]:
            names = ", ".join(f"evaluation.{key}" for key in _REPLY_SETTINGS)
            raise RecipeError(f"--set {setting}: eval changes only {names}.")
        _apply_setting(tree, locations, setting)
    try:
        return Recipe.model_validate(_lists_to_tuples(tree)).evaluation
    except ValidationError as error:
        raise RecipeError(format_validation_errors(error, tree, locations, "--set")) from error


def format_recipe_yaml(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML that `read_recipe` can read."""
    return yaml.safe_dump(dump_recipe(recipe), sort_keys=False)


def dump_recipe(recipe: Recipe) -> dict[str, object]:
    """Return the resolved recipe as JSON values, without the settings that the adapter of `adapter.start` decides."""
    fields: dict[str, dict[str, object]] = recipe.model_dump(mode="json")
    for section, names in find_inherited_settings(recipe).items():
        for name in names:
            fields[section].pop(name, None)  # some are not written without a value
    return dict(fields)


def _open_recipe(path: Path) -> str:
    """Return the text of a recipe file."""
    try:
        return _read_text(path)
    except OSError as error:
        raise RecipeError(f"Cannot read the recipe {path}: {error.strerror}.{_suggest_recipe(path)}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}).") from error


def _parse_yaml(text: str, path: Path) -> tuple[dict[str, YamlValue], dict[KeyPath, str]]:
    """Return the values of a recipe, and the file and line of each key."""
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
        raise RecipeError(f"{path}:1: a recipe must consist of sections (base:, data:, ...), not of a single value.")
    return _construct_mapping(root, (), locations, path), locations


def _read_text(path: Path) -> str:
    """Read a file up to the maximum length, because a device has no end."""
    with path.open(encoding="utf-8") as file:
        text = file.read(MAX_RECIPE_CHARACTERS + 1)
    if len(text) > MAX_RECIPE_CHARACTERS:
        raise RecipeError(f"{path}: the recipe is too long; at most {MAX_RECIPE_CHARACTERS:,} characters are allowed.")
    return text


def _suggest_recipe(path: Path) -> str:
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""


def _construct_value(node: yaml.Node, at: KeyPath, locations: dict[KeyPath, str], path: Path) -> YamlValue:
    """Return the value of a YAML node, and enter the line of each key into `locations`."""
    where = locations[at] = f"{path}:{node.start_mark.line + 1}"
    kind = node.tag.removeprefix(_YAML_TAG_PREFIX)
    if kind not in _ALLOWED_TAGS:
        raise RecipeError(f"{where}: the tag {node.tag[:MAX_KEY_LENGTH]} is not allowed in a recipe.")
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(node, at, locations, path)
    if isinstance(node, yaml.SequenceNode):
        return [_construct_value(item, (*at, str(i)), locations, path) for i, item in enumerate(node.value)]
    try:
        value = _parse_scalar(node.value, kind, plain=getattr(node, "style", None) is None)
    except (yaml.YAMLError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise RecipeError(f"{where}: {shorten(node.value)} is not a valid {kind}.") from error
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise RecipeError(f"{where}: {shorten(node.value)} is too large; the maximum is {_MAX_INTEGER:,}.")
    return value


def _construct_mapping(
    node: yaml.MappingNode, at: KeyPath, locations: dict[KeyPath, str], path: Path
) -> dict[str, YamlValue]:
    locations[at] = f"{path}:{node.start_mark.line + 1}"
    result: dict[str, YamlValue] = {}
    for key_node, value_node in node.value:
        line = f"{path}:{key_node.start_mark.line + 1}"
        is_word = isinstance(key_node, yaml.ScalarNode)
        if not is_word or key_node.tag.removeprefix(_YAML_TAG_PREFIX) not in _ALLOWED_TAGS:
            raise RecipeError(f"{line}: keys must be plain words.")
        key = str(key_node.value)
        if key in result:
            raise RecipeError(f"{line}: {key[:MAX_KEY_LENGTH]} is given twice.")
        result[key] = _construct_value(value_node, (*at, key), locations, path)
        locations[(*at, key)] = line
    return result


def _parse_scalar(text: str, kind: str, plain: bool) -> str | int | float | bool | None:
    """Return a scalar. `2e-4` is a number, as in YAML 1.2 and JSON, although YAML 1.1 reads it as text."""
    if kind == "str":
        return float(text) if plain and _EXPONENT_NUMBER.fullmatch(text) else text
    value: str | int | float | bool | None = yaml.SafeLoader("").construct_object(
        yaml.ScalarNode(_YAML_TAG_PREFIX + kind, text)
    )
    return value


def _apply_setting(tree: dict[str, YamlValue], locations: dict[KeyPath, str], setting: str) -> None:
    """Set one `section.key=value` in the values of a recipe."""
    name, equals, text = setting.partition("=")
    keys = tuple(name.strip().split("."))
    where = f"--set {setting}"
    if not equals or not all(keys):
        raise RecipeError(f"{where}: not a setting. Fix: --set section.key=value, for example --set training.epochs=1.")
    if keys[0] not in Recipe.model_fields:
        raise RecipeError(f"{where}: unknown section {keys[0]}.{suggest_key(keys[0], list(Recipe.model_fields))}")
    if len(keys) != 2 and keys[:-1] not in _NESTED_SECTIONS:
        raise RecipeError(f"{where}: name a section and a key, for example --set training.epochs=1.")
    try:
        root = compose_strict(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: the value is not valid YAML.") from error
    value = None if root is None else _construct_value(root, keys, {}, Path("--set"))
    section = tree
    for depth, key in enumerate(keys[:-1], 1):
        inner = section.setdefault(key, {})
        locations.setdefault(keys[:depth], where)
        if not isinstance(inner, dict):
            name = ".".join(keys[:depth])
            raise RecipeError(
                f"{locations.get(keys[:depth], where)}: {name} is a section with keys, not a single value."
            )
        section = inner
    section[keys[-1]] = value
    locations[keys] = where


def _lists_to_tuples(value: YamlValue) -> object:
    """Return the value with tuples in place of lists, as strict pydantic models need them."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value


def _make_paths_absolute(recipe: Recipe, recipe_path: Path, locations: Mapping[KeyPath, str]) -> Recipe:
    """Return the recipe with absolute paths of data and questions, and with a name for the run."""
    recipe_folder = recipe_path.absolute().parent

    def absolute(keys: KeyPath, path: str) -> str:
        start = Path.cwd() if locations.get(keys, "").startswith("--set") else recipe_folder
        try:
            return str((start / Path(path).expanduser()).resolve())
        except (RuntimeError, ValueError) as error:  # an unknown user, or a zero byte
            raise RecipeError(f"{locations.get(keys, recipe_path)}: {shorten(path)} is not a path: {error}.") from error

    def absolute_sources(keys: KeyPath, sources: Sources | tuple[str, ...] | None) -> object:
        if isinstance(sources, tuple):
            return tuple(absolute_sources(keys, source) for source in sources)
        if isinstance(sources, SourceSection):
            changes = {
                "path": absolute_sources(keys, sources.path),
                "system": read_system(keys, sources.system),
            }
            return sources.model_copy(update=changes)
        return sources if sources is None else absolute(keys, sources)

    def read_system(keys: KeyPath, system: str | SystemSection | None) -> str | SystemSection | None:
        if not isinstance(system, SystemSection) or system.file is None:
            return system
        return read_system_file(system, Path(absolute(keys, system.file)))

    data_paths = {key: absolute_sources(("data", key), getattr(recipe.data, key)) for key in _PATH_KEYS}
    data_paths["system"] = read_system(("data", "system"), recipe.data.system)
    if recipe.data.template and recipe.data.template not in BUNDLED_TEMPLATES:
        data_paths["template"] = absolute(("data", "template"), recipe.data.template)
    evaluation = recipe.evaluation
    if evaluation.questions is not None:
        questions = absolute(("evaluation", "questions"), evaluation.questions)
        evaluation = evaluation.model_copy(update={"questions": questions})
    if evaluation.general not in GENERAL_CHOICES:
        general = absolute(("evaluation", "general"), evaluation.general)
        evaluation = evaluation.model_copy(update={"general": general})
    adapter = recipe.adapter
    if adapter.start is not None:
        is_setting = locations.get(("adapter", "start"), "").startswith("--set")
        folders = [Path.cwd()] if is_setting else [recipe_folder, Path.cwd()]
        adapter = adapter.model_copy(update={"start": _find_start(adapter.start, folders)})
    output = recipe.output.model_copy(update={"name": recipe.output.name or _derive_run_name(recipe_path)})
    data = recipe.data.model_copy(update=data_paths)
    changes = {"adapter": adapter, "data": data, "evaluation": evaluation, "output": output}
    return recipe.model_copy(update=changes)


def _find_start(start: str, folders: Sequence[Path]) -> str:
    """Return the absolute path of an adapter in the first folder that has it; any other text is kept as a hub id."""
    for folder in folders:
        with suppress(RuntimeError, ValueError, OSError):
            path = folder / Path(start).expanduser()
            if path.exists():
                return str(path.resolve())
    return start


def _derive_run_name(path: Path) -> str:
    """Return the file name of a recipe without characters that a folder's name should not contain."""
    name = "".join(c if c.isalpha() or c.isdecimal() or c in "._-" else "-" for c in path.stem)
    return name[:MAX_KEY_LENGTH].strip(".-_") or "run"
