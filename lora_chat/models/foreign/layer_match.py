"""The layers that a PEFT config selects, with their ranks and alphas, by PEFT's rules.

Most configs name layers, which is compared here. Regular expressions of strangers can run without end, so they are
matched in a worker process with a time limit.
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TypedDict, TypeVar

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer except the LM head."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]*")
"""Names without characters of a regular expression other than the dot, which cannot be slow."""


_Number = TypeVar("_Number", int, float)


class LayerSelection(TypedDict):
    """The settings of a PEFT config that select layers."""

    target_modules: str | list[str] | None
    """None selects every layer that has weights."""
    exclude_modules: str | list[str] | None
    layers_to_transform: int | list[int] | None
    layers_pattern: str | list[str] | None
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]


class SelectedLayer(TypedDict):
    """A selected layer; None means the rank or alpha of the config."""

    rank: int | None
    alpha: float | None


def is_plain(selection: LayerSelection) -> bool:
    """Return whether a selection has no regular expressions other than names."""
    patterns = [*selection["rank_pattern"], *selection["alpha_pattern"], *_as_list(selection["layers_pattern"])]
    if isinstance(selection["target_modules"], str) and selection["target_modules"] != ALL_LINEAR:
        patterns.append(selection["target_modules"])
    if isinstance(selection["exclude_modules"], str):
        patterns.append(selection["exclude_modules"])
    return all(_PLAIN_NAME.fullmatch(pattern) for pattern in patterns)


def select_layers(selection: LayerSelection, layers: Sequence[str]) -> dict[str, SelectedLayer]:
    """Return the selected ones of a model's linear layers by name.

    The rules are those of PEFT (`check_target_module_exists`, `get_pattern_key`). Raises re.error for an expression
    that is not valid.
    """
    ranks, alphas = selection["rank_pattern"], selection["alpha_pattern"]
    return {
        layer: {"rank": _find_value(ranks, layer), "alpha": _find_value(alphas, layer)}
        for layer in layers
        if _is_selected(selection, layer)
    }


def _is_selected(selection: LayerSelection, layer: str) -> bool:
    """Return whether a config selects a layer."""
    targets, excluded = selection["target_modules"], selection["exclude_modules"]
    if excluded and _matches(excluded, layer):
        return False
    if targets is None or targets == ALL_LINEAR:
        return True
    if not _matches(targets, layer):
        return False
    numbers = selection["layers_to_transform"]
    if isinstance(targets, str) or numbers is None or numbers == []:
        return True
    number = _find_number(selection["layers_pattern"], layer)
    return number is not None and (number == numbers if isinstance(numbers, int) else number in numbers)


def _matches(names: str | list[str], layer: str) -> bool:
    """Return whether a layer matches a regular expression, or ends with one of the names."""
    if isinstance(names, str):
        return re.fullmatch(names, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in names)


def _find_number(layers_pattern: str | list[str] | None, layer: str) -> int | None:
    """Return the number of the decoder layer in a name."""
    match = None
    for pattern in _as_list(layers_pattern):
        match = match or re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", layer)
    if not _as_list(layers_pattern):
        match = re.match(r".*?\.[^.]*\.(\d+)\.", layer)
    return int(match[match.re.groups]) if match else None


def _find_value(pattern: Mapping[str, _Number], layer: str) -> _Number | None:
    """Return the value of the first pattern that matches the end of a name."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), None)


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []


def main() -> None:
    """Answer one request on standard input, as the worker process does."""
    request = json.load(sys.stdin)
    answer = select_layers(request["selection"], request["layers"])
    with os.fdopen(os.dup(1), "wb") as file:
        file.write(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
