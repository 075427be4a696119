"""The layers that a recipe selects on a base, as full names that every reader of the adapter understands.

PEFT would match patterns again whenever the adapter is opened. Full names give the same layers without patterns, which
other programs do not read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.errors import RecipeError
from lora_chat.models.adapter_config import LoraSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Number = TypeVar("Number", int, float)
_MAX_SHOWN = 5
"""Largest number of names in a message."""


def select_layers(
    names: Sequence[str], model: "PreTrainedModel", section: AdapterSection, settings: LoraSettings
) -> LoraSettings:
    """Return the settings with the full names of the selected layers, their ranks and alphas.

    `names` are the layers that can carry LoRA. Raises RecipeError for layers that the base does not have, patterns
    that match nothing, and layers whose scale is out of range.
    """
    selected = [name for name in names if is_target(name, section.target_modules)]
    if not selected:
        raise RecipeError(
            f"adapter.target_modules: {section.target_modules} matches none of the base's layers. "
            f"Their names are {_show(names)}."
        )
    if section.layers is not None:
        selected = select_decoder_layers(model, selected, section.layers)
    ranks = _match_patterns(section.rank_pattern or {}, selected, "rank_pattern")
    alphas = _match_patterns(section.alpha_pattern or {}, selected, "alpha_pattern")
    for name in selected:
        _check_scale(section, name, ranks.get(name, section.rank), alphas.get(name, section.alpha))
    targets = settings.target_modules
    if section.layers is not None or isinstance(targets, str):
        targets = tuple(sorted(selected))
    return replace(
        settings,
        target_modules=targets,
        rank_pattern=tuple(sorted((name, rank) for name, rank in ranks.items() if rank != section.rank)),
        alpha_pattern=tuple(sorted((name, alpha) for name, alpha in alphas.items() if alpha != section.alpha)),
    )


def select_decoder_layers(model: "PreTrainedModel", names: Sequence[str], layers: str | tuple[int, ...]) -> list[str]:
    """Return the names inside the selected decoder layers. Raises RecipeError for numbers that do not exist."""
    prefix, count = _find_decoder_layers(model)
    if isinstance(layers, str):
        end, number = layers.split()
        size = int(number)
        numbers = set(range(size) if end == "first" else range(count - size, count))
    else:
        numbers = set(layers)
    if outside := sorted(number for number in numbers if not 0 <= number < count):
        wanted = layers if isinstance(layers, str) else f"layer {outside[0]}"
        raise RecipeError(
            f"adapter.layers: the base has no {wanted}, because it has {count} decoder layers, 0 to {count - 1}."
        )
    inside = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    selected = [name for name in names if (match := inside.match(name)) and int(match[1]) in numbers]
    if not selected:
        raise RecipeError("adapter.layers: none of the target modules is in these decoder layers.")
    return selected


def is_target(name: str, targets: str | tuple[str, ...]) -> bool:
    """Return whether PEFT would put LoRA on a layer (peft/tuners/tuners_utils.py, check_target_module_exists)."""
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _find_decoder_layers(model: "PreTrainedModel") -> tuple[str, int]:
    """Return the name and the length of the list of decoder layers. Raises RecipeError if none exists."""
    import torch

    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    decoder: torch.nn.Module = model.get_decoder()
    lists = {id(m) for m in decoder.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count}
    for name, module in model.named_modules():
        if id(module) in lists:
            return name, len(module)
    raise RecipeError("adapter.layers: the decoder layers of this base are not in one list, so they have no numbers.")


def _match_patterns(patterns: Mapping[str, Number], names: list[str], field: str) -> dict[str, Number]:
    """Return the value of each matching layer, by PEFT's rule (peft/utils/other.py, get_pattern_key).

    Raises RecipeError for a pattern that decides no layer.
    """
    values: dict[str, Number] = {}
    used = set()
    for name in names:
        key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)
        if key is not None:
            values[name] = patterns[key]
            used.add(key)
    if unused := [key for key in patterns if key not in used]:
        raise RecipeError(
            f"adapter.{field}: {unused[0]} decides no adapted layer: it matches none, or an earlier pattern matches "
            f"the same ones. The adapted layers are {_show(names)}."
        )
    return values


def _check_scale(section: AdapterSection, name: str, rank: int, alpha: float) -> None:
    """Raise RecipeError for a rank and alpha of a layer that a recipe could not have for all layers."""
    try:
        AdapterSection(rank=rank, alpha=alpha, variant=section.variant)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RecipeError(f"adapter.rank_pattern, alpha_pattern: {name}: {reason}.") from error


def _show(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    more = f" and {len(names) - _MAX_SHOWN:,} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more
