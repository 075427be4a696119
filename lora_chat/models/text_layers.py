"""The linear layers of a base that can carry LoRA for text, and the reasons why others cannot."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from lora_chat.errors import RecipeError
from lora_chat.models.architectures import find_architecture

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_TOWER = "it is not a part of the text model (towers for pictures and sound stay as they are)"
_TIED = "several layers share its weights, so each of their adapters would change the others"
_OWN_FORWARD = "it is more than a linear layer"
_READ_DIRECTLY = "the model's code reads its weights without calling it, so an adapter would have no effect"
_UNSUPPORTED = "PEFT does not support it in this architecture, whose kernels read its weights directly"
_TOWER_NAME = re.compile(r"(^|\.)(vision|visual|image|audio|speech)(_\w+)?\.")
"""Parts for pictures and sound in models whose text has no module for itself, such as Phi-4-multimodal."""
_PRODUCT_WITH_WEIGHT = re.compile(r"\bself\.(\w+)\.weight\s*@")

Targets = tuple[str, ...] | str
"""Names of layers, or `all-linear`."""


@dataclass(frozen=True)
class TextLayers:
    """The linear layers of a model by name, except for the LM head."""

    suitable: tuple[str, ...]
    """Layers that can carry LoRA."""
    unsuitable: Mapping[str, str] = field(default_factory=dict)
    """Layers that cannot, with the reasons."""

    def select(self, targets: Targets) -> Targets:
        """Return the targets limited to suitable layers: unchanged, or the full names of the suitable ones.

        Raises RecipeError for a target that selects only unsuitable layers.
        """
        if isinstance(targets, str):
            return self.suitable if self.unsuitable else targets
        for target in targets:
            if any(_matches(name, target) for name in self.suitable):
                continue
            if reason := next((why for name, why in self.unsuitable.items() if _matches(name, target)), None):
                raise RecipeError(
                    f"adapter.target_modules: {target} cannot have an adapter, because {reason}. "
                    f"Choose from {', '.join(last_names(self.suitable))}, or `all-linear`."
                )
        if not any(_matches(name, target) for name in self.unsuitable for target in targets):
            return targets
        return tuple(name for name in self.suitable if any(_matches(name, target) for target in targets))


def find_text_layers(model: "PreTrainedModel") -> TextLayers:
    """Return the linear layers of a model, as they are loaded or on the meta device.

    The facts are read from the model, so they hold for an architecture that is not in the table.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    prefix = find_text_prefix(model)
    tied = _list_tied_modules(model)
    excluded = find_architecture(getattr(model.config, "model_type", None)).layers_without_lora
    suitable: list[str] = []
    unsuitable: dict[str, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | Conv1D) or module is head:
            continue
        parent_name, _, last_name = name.rpartition(".")
        reason = None
        if not name.startswith(prefix) or _TOWER_NAME.search(name):
            reason = _TOWER
        elif name in tied:
            reason = _TIED
        elif _has_own_forward(module):
            reason = _OWN_FORWARD
        elif last_name in excluded:
            reason = _UNSUPPORTED
        elif last_name in _list_products_with_weights(model.get_submodule(parent_name).__class__):
            reason = _READ_DIRECTLY
        if reason:
            unsuitable[name] = reason
        else:
            suitable.append(name)
    return TextLayers(tuple(suitable), unsuitable)


def find_text_prefix(model: "PreTrainedModel") -> str:
    """Return the beginning of the names of the text model's modules; empty if the whole model is for text."""
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    return f"{name}." if name else ""


def list_unquantized_layers(model: "PreTrainedModel") -> list[str]:
    """Return the linear layers of a meta model that stay in 16 bits in the modes 4bit and 8bit.

    Towers do, because a merged model must have them unchanged; and layers whose weights the model's code reads, because
    packed weights are no matrix.
    """
    layers = find_text_layers(model)
    return [name for name, reason in layers.unsuitable.items() if reason in (_TOWER, _READ_DIRECTLY)]


def describe_left_out(layers: TextLayers) -> str | None:
    """Return one line about the layers without LoRA, or None."""
    if not layers.unsuitable:
        return None
    reasons: dict[str, list[str]] = {}
    for name, reason in layers.unsuitable.items():
        reasons.setdefault(reason, []).append(name)
    parts = [f"{', '.join(_shorten(last_names(names)))} ({reason})" for reason, names in reasons.items()]
    return f"LoRA leaves out {len(layers.unsuitable)} linear layers: {'; '.join(parts)}."


def last_names(names: Sequence[str]) -> list[str]:
    """Return the last parts of names of modules, sorted and without repetitions."""
    return sorted({name.split(".")[-1] for name in names})


def _shorten(names: Sequence[str]) -> list[str]:
    """Return at most six names, the last of which counts the others."""
    return list(names) if len(names) <= 6 else [*names[:5], f"and {len(names) - 5} more names"]


def _matches(name: str, target: str) -> bool:
    """Return whether PEFT would put LoRA on a module for a name in `target_modules`."""
    return name == target or name.endswith(f".{target}")


def _has_own_forward(module: "torch.nn.Module") -> bool:
    """Return whether a subclass of Linear returns something else than a product, such as the choice of experts."""
    import torch

    if not isinstance(module, torch.nn.Linear) or type(module).forward is torch.nn.Linear.forward:
        return False
    if not type(module).__module__.startswith("transformers."):  # packed weights of bitsandbytes
        return False
    try:
        with torch.no_grad():
            output = module(module.weight.new_zeros(2, module.in_features))
    except Exception:  # the layer needs other arguments
        return True
    return not isinstance(output, torch.Tensor) or output.shape != (2, module.out_features)


def _list_tied_modules(model: "PreTrainedModel") -> set[str]:
    """Return the modules whose weight other modules share."""
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return {name.rpartition(".")[0] for pair in tied.items() for name in pair}


@lru_cache(maxsize=256)
def _list_products_with_weights(parent: type) -> frozenset[str]:
    """Return the attributes of a class of modules whose `weight` its methods multiply with, instead of calling them.

    Mamba does so with `dt_proj` (transformers/models/mamba/modeling_mamba.py), where LoRA has no effect and packed
    weights of 4 or 8 bits raise an error.
    """
    methods = [value for value in vars(parent).values() if inspect.isfunction(value)]
    if not parent.__module__.startswith("transformers."):
        return frozenset()
    sources = [inspect.getsource(method) for method in methods]
    return frozenset(name for source in sources for name in _PRODUCT_WITH_WEIGHT.findall(source))
