"""Regular expressions for names of layers, limited to those that cannot take long."""

import importlib
import re
import sys
import warnings
from collections.abc import Iterable

_MAX_LENGTH = 500
_MAX_REPEATS = 4
"""Largest number of repeats. With more, a name of 100 characters could be split in too many ways."""
_MAX_BRANCHES = 8
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+")


def is_plain_name(pattern: str) -> bool:
    """Return whether a text is the name of a layer or the end of one, without the characters of a pattern."""
    return _PLAIN_NAME.fullmatch(pattern) is not None


def check_layer_pattern(pattern: str) -> str:
    """Return a pattern. Raise ValueError if it is no regular expression, or one that could take too long."""
    if len(pattern) > _MAX_LENGTH:
        raise ValueError(f"a pattern has at most {_MAX_LENGTH} characters")
    # The parser of `re` has no public name: https://github.com/python/cpython/issues/91308
    parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = parser.parse(pattern)
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise ValueError(f"{pattern!a} is not a regular expression ({error})") from None
    repeats, branches = _count_choices(tree, repeated=False)
    if repeats > _MAX_REPEATS or branches > _MAX_BRANCHES:
        raise ValueError(
            f"{pattern!a} could take too long: at most {_MAX_REPEATS} repeats and {_MAX_BRANCHES} alternatives"
        )
    return pattern


def _count_choices(tree: Iterable[tuple[object, object]], *, repeated: bool) -> tuple[int, int]:
    """Count the repeats and the branches of a parsed pattern. Raise ValueError for a choice inside a repeat."""
    repeats = branches = 0
    for operation, argument in tree:
        name = str(operation)
        if name.startswith(("GROUPREF", "ASSERT")):
            raise ValueError("a pattern of layers has no look-around and no references to groups")
        inner: list[Iterable[tuple[object, object]]] = []
        in_repeat = repeated
        if "REPEAT" in name:
            assert isinstance(argument, tuple)
            if repeated:
                raise ValueError("a pattern of layers has no repeat inside a repeat, which could take forever")
            repeats, in_repeat, inner = repeats + 1, argument[1] != 1, [argument[2]]
        elif name == "BRANCH":
            assert isinstance(argument, tuple)
            if repeated:
                raise ValueError("a pattern of layers has no alternatives inside a repeat, which could take forever")
            branches, inner = branches + len(argument[1]), list(argument[1])
        elif name in ("SUBPATTERN", "ATOMIC_GROUP"):
            inner = [argument[-1] if isinstance(argument, tuple) else argument]  # type: ignore[list-item]
        for part in inner:
            more_repeats, more_branches = _count_choices(part, repeated=in_repeat)
            repeats, branches = repeats + more_repeats, branches + more_branches
    return repeats, branches
