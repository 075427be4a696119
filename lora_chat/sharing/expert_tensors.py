"""Check the LoRA pairs of experts, whose weights of all experts are side by side."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lora_chat.errors import IntegrityError
from lora_chat.models.adapter_config import LoraSettings

if TYPE_CHECKING:
    import torch

_WRAPPED = ".base_layer"
"""Part of a module's path for each LoRA layer that PEFT has put around it."""


def list_owned_experts(module: str, settings: LoraSettings) -> list[str]:
    """Return the expert weights that a module can own; PEFT wraps a module once for each of them, as `.base_layer`."""
    owner = module
    while owner.endswith(_WRAPPED):
        owner = owner.removesuffix(_WRAPPED)
    weights = () if isinstance(settings.experts, bool) else settings.experts
    return [weight for weight in weights if f".{owner}".endswith(f".{weight.rpartition('.')[0]}")]


def check_expert_owners(modules: Iterable[str], settings: LoraSettings) -> None:
    """Raise IntegrityError unless each owner of expert weights has one LoRA pair for each of its weights."""
    owners: dict[str, list[str]] = {}
    for module in modules:
        owners.setdefault(module.replace(_WRAPPED, ""), []).append(module)
    for owner, pairs in owners.items():
        weights = list_owned_experts(owner, settings)
        if {pair.count(_WRAPPED) for pair in pairs} != set(range(len(weights))):
            raise IntegrityError(f"{owner[:200]}: {len(pairs)} LoRA pairs for its expert weights {', '.join(weights)}")
    named = () if isinstance(settings.experts, bool) else settings.experts
    if unused := [w for w in named if not any(w in list_owned_experts(owner, settings) for owner in owners)]:
        raise IntegrityError(f"the config names {unused[0][:100]!a}, for which there are no weights")


def check_expert_pair(module: str, parts: "Mapping[str, torch.Tensor]", settings: LoraSettings) -> None:
    """Raise IntegrityError unless the parts are a LoRA pair of the right rank for each of several experts."""
    if parts.keys() != {"lora_A", "lora_B"}:
        raise IntegrityError(f"{module}: the weights of experts have exactly lora_A and lora_B")
    lora_a, lora_b = parts["lora_A"], parts["lora_B"]
    if lora_a.dtype != lora_b.dtype:
        raise IntegrityError(f"{module}: its two weights are {lora_a.dtype} and {lora_b.dtype}")
    if (
        lora_a.dim() != 2
        or lora_b.dim() != 2
        or lora_a.shape[0] != lora_b.shape[1]
        or not lora_a.shape[0]
        or lora_a.shape[0] % settings.rank
    ):
        raise IntegrityError(
            f"{module}: the shapes {tuple(lora_a.shape)} and {tuple(lora_b.shape)} are not a LoRA of rank "
            f"{settings.rank} for each expert"
        )
