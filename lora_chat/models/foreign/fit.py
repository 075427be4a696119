"""Another tool's adapter as the same function in PEFT's current form, read from names and shapes of its weights."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from lora_chat.errors import IntegrityError
from lora_chat.models.adapter import read_peft_defaults, validate_adapter_config
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.base_model import LocalBase
from lora_chat.models.foreign.base_layers import BaseLayers, LayerShape, read_base_layers, read_ranks
from lora_chat.models.foreign.layer_match import LayerSelection, SelectedLayer, is_plain, select_layers
from lora_chat.models.foreign.mlx import convert_mlx_config, find_missing_mlx_layers, is_mlx_config
from lora_chat.models.foreign.peft_settings import KEPT_FIELDS, MERGE_WITH_PEFT, check_peft_config, read_list
from lora_chat.models.foreign.tensor_names import (
    LORA_B,
    MAGNITUDE,
    TensorName,
    describe_other_tensors,
    find_renaming,
    parse_bias_name,
    parse_mlx_name,
    parse_peft_name,
)
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.worker import run_worker

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_MATCH_TIMEOUT_SECONDS, _MATCH_MEMORY_BYTES = 20.0, 1 << 30
_MAX_LAYERS = 2000
_EXTRA_FIELDS = ("bias", "modules_to_save", "trainable_token_indices", "target_parameters")
"""Settings with tensors that belong to no linear layer; `LoraSettings` reads or refuses them."""


def fit_foreign_adapter(stored: StoredAdapter, base: LocalBase) -> StoredAdapter:
    """Return another tool's adapter with PEFT's current settings and names for this base.

    Only names and shapes are read, before any weights. Raises IntegrityError for settings that cannot be opened, and
    for layers that the base or the file lacks, with the reason.
    """
    headers = stored.read_headers()
    is_mlx = is_mlx_config(stored.config)
    names = {name: parse_mlx_name(name) if is_mlx else parse_peft_name(name) for name in headers}
    config = dict(convert_mlx_config(stored.config, names.values(), stored.name) if is_mlx else stored.config)
    check_peft_config(config, stored.name, read_peft_defaults())
    layers = read_base_layers(base)
    renaming = find_renaming({tensor.layer for tensor in names.values() if tensor.layer}, layers.shapes)
    names = {name: replace(tensor, layer=renaming.to_base(tensor.layer)) for name, tensor in names.items()}
    if config.get("target_parameters"):
        experts = {name: TensorName("", name) for name, tensor in names.items() if tensor.layer not in layers.shapes}
        names |= experts
    ranks = read_ranks(stored.name, names, headers, transposed=is_mlx)
    names, ranks = _leave_out_idle_layers(stored, names, ranks, layers)
    layers.check_shapes(stored.name, ranks)
    _check_other_tensors(stored.name, config, names)
    aliases = {renaming.to_adapter(layer): layer for layer in layers.shapes}
    selection = _read_selection(config, stored.name)
    selected = {aliases[alias]: layer for alias, layer in _select(stored.name, selection, [*aliases]).items()}
    if is_mlx:
        missing = find_missing_mlx_layers(stored.config, sorted(ranks), sorted(layers.shapes))
    else:
        missing = sorted(selected.keys() - ranks.keys()) if config.get("target_modules") is not None else []
    missing = [layer for layer in missing if layer not in layers.unsuitable]
    _check_selection(stored.name, ranks, selected, missing)
    canonical = {key: config[key] for key in KEPT_FIELDS if key in config}
    canonical |= _describe_layers(stored.name, config, ranks, selected, [*layers.shapes])
    for field, patterns in _describe_parameters(stored.name, config, selection, layers.parameters).items():
        canonical[field] = cast("dict[str, object]", canonical[field]) | patterns
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    canonical |= {"base_model_name_or_path": name or base.name, "revision": revision if name else base.revision}
    canonical["bias"] = _read_bias(stored.name, config, names, ranks)
    fitted = replace(stored, config=canonical, read_weights=lambda: _read_renamed(stored, names, transposed=is_mlx))
    try:
        validate_adapter_config(fitted)
    except IntegrityError as error:
        raise IntegrityError(f"{error}\nFix: {MERGE_WITH_PEFT}.") from error
    return fitted


def _leave_out_idle_layers(
    stored: StoredAdapter, names: Mapping[str, TensorName], ranks: Mapping[str, LayerShape], layers: BaseLayers
) -> tuple[dict[str, TensorName], dict[str, LayerShape]]:
    """Return names and sizes without layers that cannot carry LoRA here, if their update is zero.

    So are the towers for pictures in an adapter that was trained on text alone.
    """
    unsuitable = ranks.keys() & layers.unsuitable.keys()
    if not unsuitable:
        return dict(names), dict(ranks)
    weights = stored.read_weights()
    active = {
        tensor.layer
        for name, tensor in names.items()
        if tensor.layer in unsuitable and (tensor.part == MAGNITUDE or (tensor.part == LORA_B and weights[name].any()))
    }
    idle = unsuitable - active
    if idle and not active:
        logger.info(f"{stored.name}: LoRA on {len(idle)} layers outside of the text model is zero and is left out.")
    remaining = {name: tensor for name, tensor in names.items() if tensor.layer not in idle}
    return remaining, {layer: shape for layer, shape in ranks.items() if layer not in idle}


def _check_other_tensors(name: str, config: Mapping[str, object], names: Mapping[str, TensorName]) -> None:
    """Raise IntegrityError for tensors that belong to no linear layer and to none of the settings."""
    others = sorted(file_name for file_name, tensor in names.items() if not tensor.layer)
    if others and all(config.get(field) in (None, False, [], {}, "none") for field in _EXTRA_FIELDS):
        description, example = describe_other_tensors(others)
        raise IntegrityError(
            f"The adapter {name} cannot be opened, because it contains {description} "
            f"({sanitize_line(example, 200)}, one of {len(others):,} tensors).\n"
            f"Fix: {MERGE_WITH_PEFT}."
        )


def _read_bias(
    name: str, config: Mapping[str, object], names: Mapping[str, TensorName], ranks: Mapping[str, LayerShape]
) -> object:
    """Return the setting `bias` for the biases that the file has: none, or those of adapted layers.

    Raises IntegrityError for biases of other layers.
    """
    biases = [parse_bias_name(tensor.part) for tensor in names.values() if tensor.part.endswith(".bias")]
    if not biases or config.get("bias") in (None, "none"):
        return "none"
    others = sorted(layer for layer in biases if layer not in ranks)
    if others:
        raise IntegrityError(
            f"The adapter {name} cannot be opened, because it has trained biases of {len(others):,} layers "
            f"without LoRA (the first is {sanitize_line(others[0], 200)}).\nFix: {MERGE_WITH_PEFT}."
        )
    return "lora_only"


def _read_selection(config: Mapping[str, object], name: str) -> LayerSelection:
    """Return the settings that select layers. Raises IntegrityError for one of another type."""
    patterns = {}
    for field, kinds in (("rank_pattern", (int,)), ("alpha_pattern", (int, float))):
        pattern = config.get(field) or {}
        if not isinstance(pattern, dict) or not all(type(value) in kinds for value in pattern.values()):
            raise IntegrityError(f"The adapter {name}: {field} is not an object of numbers.")
        patterns[field] = pattern
    text_fields = ("target_modules", "exclude_modules", "layers_pattern")
    selection = {field: read_list(config, field, name, str) for field in text_fields}
    numbers = read_list(config, "layers_to_transform", name, int)
    return cast("LayerSelection", {**selection, "layers_to_transform": numbers, **patterns})


def _select(name: str, selection: LayerSelection, layers: list[str]) -> dict[str, SelectedLayer]:
    """Return the layers that a config selects. Regular expressions are matched in a worker process."""
    try:
        if is_plain(selection):
            return select_layers(selection, layers)
    except re.error as error:
        raise IntegrityError(f"The adapter {name}: a name of a layer is not valid ({error}).") from error
    result = run_worker(
        select_layers.__module__,
        stdin=json.dumps({"selection": selection, "layers": layers}),
        timeout=_MATCH_TIMEOUT_SECONDS,
        memory=_MATCH_MEMORY_BYTES,
    )
    if result.exit_code != 0:
        raise IntegrityError(
            f"The adapter {name}: the regular expressions that select its layers are not valid or take longer than "
            f"{_MATCH_TIMEOUT_SECONDS:.0f} seconds. Fix: write names of layers into its adapter_config.json."
        )
    answer: dict[str, SelectedLayer] = json.loads(result.stdout)
    return answer


def _check_selection(
    name: str, ranks: Mapping[str, LayerShape], selected: Mapping[str, SelectedLayer], missing: list[str]
) -> None:
    """Raise IntegrityError unless the file has the weights of exactly the selected layers."""
    if missing:
        raise IntegrityError(
            f"The adapter {name} does not fit this base: the weights of {len(missing):,} layers are missing (the first "
            f"is {missing[0]}). The file is incomplete, or was trained on another base.\n"
            "Fix: copy or download it again, or name its base with --base."
        )
    if surplus := sorted(ranks.keys() - selected.keys()):
        raise IntegrityError(
            f"The adapter {name}: its config does not name {len(surplus):,} layers that have weights (the first is "
            f"{surplus[0]}), so that PEFT would leave them out.\nFix: correct target_modules in adapter_config.json."
        )


def _describe_layers(
    name: str,
    config: Mapping[str, object],
    ranks: Mapping[str, LayerShape],
    selected: Mapping[str, SelectedLayer],
    base_layers: list[str],
) -> dict[str, object]:
    """Return settings that select exactly the layers with weights, by their names and without regular expressions.

    Raises IntegrityError if the rank of a layer is not the one in the config, because PEFT scales by that.
    """
    for layer, shape in ranks.items():
        rank = selected[layer]["rank"] or config.get("r")
        if shape.rank != rank:
            raise IntegrityError(
                f"The adapter {name}: {layer} has rank {shape.rank}, but its config says "
                f"{sanitize_line(str(rank), 20)}.\nFix: copy or download adapter_config.json and the weights again, or "
                "correct r or rank_pattern in adapter_config.json."
            )
    targets = config.get("target_modules")
    listed = targets if isinstance(targets, list) else []
    used = [target for target in listed if any(_ends_with(target, layer) for layer in ranks)]
    if ranks.keys() == {layer for layer in base_layers if any(_ends_with(target, layer) for target in used)}:
        names = sorted(used)
    else:
        names = sorted(ranks)
    if len(names) > _MAX_LAYERS:
        raise IntegrityError(f"The adapter {name} has {len(names):,} layers; the limit is {_MAX_LAYERS:,}.")
    rank_pattern = {layer: shape.rank for layer, shape in sorted(ranks.items()) if shape.rank != config.get("r")}
    alphas = {layer: selected[layer]["alpha"] for layer in sorted(ranks)}
    alpha_pattern = {layer: alpha for layer, alpha in alphas.items() if alpha not in (None, config.get("lora_alpha"))}
    return {"target_modules": names, "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}


def _describe_parameters(
    name: str, config: Mapping[str, object], selection: LayerSelection, parameters: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return other ranks and alphas of the parameters that an adapter trains, such as experts, by their full names."""
    targets = read_list(config, "target_parameters", name, str)
    if not isinstance(targets, list):
        return {}
    # PEFT selects parameters by the end of their names, and ranks and alphas by the rule for layers.
    everything: LayerSelection = {**selection, "target_modules": None, "exclude_modules": None}
    trained = [p for p in parameters if any(p == target or p.endswith(f".{target}") for target in targets)]
    values = _select(name, everything, trained)
    ranks = {parameter: value["rank"] for parameter, value in values.items() if value["rank"] is not None}
    alphas = {parameter: value["alpha"] for parameter, value in values.items() if value["alpha"] is not None}
    return {"rank_pattern": {**ranks}, "alpha_pattern": alphas}


def _ends_with(target: str, layer: str) -> bool:
    """Return whether PEFT selects a layer by this name."""
    return layer == target or layer.endswith(f".{target}")


def _read_renamed(
    stored: StoredAdapter, names: Mapping[str, TensorName], *, transposed: bool
) -> "dict[str, torch.Tensor]":
    """Read an adapter's weights under PEFT's names. Raises IntegrityError if the file has changed."""
    weights = stored.read_weights()
    if names.keys() - weights.keys():
        raise IntegrityError(f"The weights of {stored.name} changed while they were read. Fix: run the command again.")
    return {
        names[name].peft_name: weight.T.contiguous() if transposed and weight.dim() == 2 else weight
        for name, weight in weights.items()
        if name in names
    }
