"""A parser for strangers' YAML with limits on size and depth, without aliases and tags, so that it stays cheap."""

import re
from typing import Any

import yaml

MAX_RECIPE_CHARACTERS = 500_000
"""Largest length of a recipe, in characters."""
MAX_CARD_CHARACTERS = 2_000_000
"""Largest length of the YAML at the beginning of a card, in characters."""
MAX_DEPTH = 40
"""Largest depth of nested lists and mappings."""
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_FAST_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def compose_strict(
    text: str, max_characters: int = MAX_RECIPE_CHARACTERS, loader: Any = yaml.SafeLoader
) -> yaml.Node | None:
    """Return YAML text as nodes, or None for an empty text; its events are checked before any node is created.

    Raise yaml.YAMLError for wrong syntax, aliases and anchors (a few can expand beyond all memory), non-standard tags,
    several documents, and text that is too long or nested too deeply.
    """
    if len(text) > max_characters:
        raise yaml.YAMLError(f"it has {len(text):,} characters; {max_characters:,} are allowed")
    depth = documents = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _yaml_error("aliases (& and *) are not allowed", event)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _yaml_error("a second document is not allowed", event)
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _yaml_error("nested too deeply", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return yaml.compose(text, Loader=loader)


def read_front_matter(text: str) -> dict[str, Any]:
    """Return the YAML between the first two lines `---` of a Markdown file, or {} if it does not begin with one.

    Raise ValueError for YAML that `compose_strict` refuses, for repeated keys, and for anything but a mapping.
    """
    match = _FRONT_MATTER.match(text)
    if not match:
        return {}
    try:
        root = compose_strict(match["yaml"], MAX_CARD_CHARACTERS, _FAST_LOADER)
        if root is None:
            return {}
        _check_keys(root)
        value = yaml.constructor.SafeConstructor().construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 2})" if error.problem_mark else ""
        raise ValueError(f"{error.problem}{line}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (TypeError, OverflowError, AttributeError, KeyError, IndexError) as error:  # invalid dates and numbers
        raise ValueError("a value cannot be read") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("it is not a mapping")
    return value


def _check_keys(node: yaml.Node) -> None:
    pending = [node]
    while pending:
        current_node = pending.pop()
        if isinstance(current_node, yaml.MappingNode):
            keys = [key.value for key, _ in current_node.value if isinstance(key, yaml.ScalarNode)]
            if len(keys) != len(current_node.value):
                raise _yaml_error("keys are plain words", current_node)
            if len(set(keys)) != len(keys):
                raise _yaml_error("a key appears twice", current_node)
            pending += [value for _, value in current_node.value]
        elif isinstance(current_node, yaml.SequenceNode):
            pending += current_node.value


def _yaml_error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
