"""Mixture-of-experts bases: their expert weights, their routers, and the layers that LoRA trains by default.

Transformers 5 keeps all experts of a layer in one three-dimensional parameter, such as `mlp.experts.gate_up_proj`.
PEFT trains it if its name is in `target_parameters`
(https://huggingface.co/docs/peft/developer_guides/lora#targeting-nnparameter-directly).
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.errors import RecipeError
from lora_chat.models.text_layers import find_text_layers

if TYPE_CHECKING:
    import torch

_EXPERT_CLASS = re.compile(r"Experts$|CDMoE$")
"""Classes of modules that own or contain the weights of experts; Doge's CDMoE has them in embeddings."""
_EXPERT_DIMENSIONS = 3
"""Dimensions of a weight that PEFT can train: experts, outputs, inputs; or experts, inputs, outputs."""
_TOKEN_MIXER = re.compile(r"attn|attention|mamba|mixer|conv")
"""Parts of the names of modules that mix tokens."""
_NO_TOKEN_MIXER = re.compile(r"mlp|ffn|feed_forward|moe|expert|router|indexer|compressor|hyper")
"""Parts of the names of feed-forward blocks, routers, and parts of sparse attention that get no gradient."""
_FEED_FORWARD_CLASS = re.compile(r"MLP$|FeedForward$|FFN$")
_ROUTER_NAME = re.compile(r"(^|\.)(router|gate|shared_expert_gate|router_gate)(\.|$)")
"""Modules that choose experts or weigh their outputs, by their path in a decoder layer."""
_MAMBA_CLASS = re.compile(r"Mamba")
_MAMBA_INPUT = "in_proj"
"""Linear layer of a Mamba block whose weight no kernel reads past its forward, which would ignore LoRA."""
_BEFORE_LAYER_NUMBER = re.compile(r"^.*?\.\d+\.")


def has_experts(model: "torch.nn.Module") -> bool:
    """Return whether a model has mixture-of-experts layers."""
    return any(_EXPERT_CLASS.search(type(module).__name__) for module in model.modules())


def list_expert_parameters(model: "torch.nn.Module", experts: bool | Collection[str] = True) -> list[str]:
    """Return the full names of the selected weights of experts that PEFT can train."""
    return [
        f"{name}.{parameter_name}".replace(".base_layer", "")
        for name, module in model.named_modules()
        if _EXPERT_CLASS.search(type(module).__name__)
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == _EXPERT_DIMENSIONS
        and (experts is True or (experts and _select([f"{name}.{parameter_name}"], experts)))
    ]


def list_expert_weights(model: "torch.nn.Module") -> tuple[str, ...]:
    """Return the weights of experts that PEFT can train, by their paths in a decoder layer."""
    return tuple(sorted({_path_in_layer(name) for name in list_expert_parameters(model)}))


def list_attention_layers(
    model: "torch.nn.Module", layers: Sequence[str], is_converted: Callable[[str], bool]
) -> tuple[str, ...]:
    """Return the full names of the linear layers of attention and other token mixers.

    `layers` are the full names of the linear layers that can carry LoRA. `is_converted` returns whether PEFT reads a
    name as an expert of this base.
    """
    converted = {last for last in {_last_name(name) for name in layers} if is_converted(last)}
    return tuple(name for name in layers if _is_in_token_mixer(model, name) and _last_name(name) not in converted)


def shorten_names(model: "torch.nn.Module", names: Sequence[str]) -> tuple[str, ...]:
    """Return the last names of layers, or their paths in a decoder layer if other modules have the same last name."""
    named = set(names)
    others = {_last_name(name) for name, _ in model.named_modules() if name not in named}
    return tuple(sorted({_path_in_layer(n) if _last_name(n) in others else _last_name(n) for n in names}))


def check_experts_exist(model: "torch.nn.Module", experts: bool | Collection[str]) -> None:
    """Raise RecipeError for experts that a base does not have, or has in a form that PEFT cannot train."""
    weights = list_expert_weights(model)
    if experts and not weights:
        kind = "keeps its experts in a form that PEFT cannot train" if has_experts(model) else "has no experts"
        raise RecipeError(f"adapter.experts: this base {kind}. Fix: --set adapter.experts=false")
    named = () if isinstance(experts, bool) else experts
    if unknown := [name for name in named if not list_expert_parameters(model, [name])]:
        raise RecipeError(f"adapter.experts: this base has no {unknown[0]}. Choose from {', '.join(weights)}.")


def check_no_experts(model: "torch.nn.Module", targets: Sequence[str], is_converted: Callable[[str], bool]) -> None:
    """Raise RecipeError for target modules that are experts or routers."""
    if isinstance(targets, str):
        return
    weights = list_expert_weights(model)
    advice = ", and train the experts with --set adapter.experts=true" if weights else ""
    converted = {last for last in {_last_name(target) for target in targets} if is_converted(last)}
    linears = _list_linear_layers(model)
    for target in targets:
        matched = [name for name in linears if name == target or name.endswith(f".{target}")]
        if _last_name(target) in converted or (not matched and _select(weights, [target])):
            raise RecipeError(
                f"adapter.target_modules: PEFT reads {target} as experts of this base, which are no linear layers. "
                f"Fix: leave out {_last_name(target)}{advice}"
            )
        if weights and any(_ROUTER_NAME.search(_path_in_layer(name)) for name in matched):
            raise RecipeError(
                f"adapter.target_modules: {target} is a router of this base, which is never trained, because another "
                f"choice of experts changes every answer. Fix: leave it out."
            )


def format_expert_note(model: "torch.nn.Module", adapter: AdapterSection, targets: Sequence[str]) -> str | None:
    """Format the line about layers that `all-linear` leaves out; None if all are trained or a list is given.

    `targets` are the resolved target modules.
    """
    if adapter.target_modules != "all-linear" or targets == "all-linear":
        return None
    if not has_experts(model):
        # PEFT may have wrapped the layers.
        layers = [name.removesuffix(".base_layer") for name in find_text_layers(model).suitable if ".lora_" not in name]
        others = {*map(_last_name, layers)} - {*map(_last_name, targets)}
        return f"LoRA leaves out {', '.join(sorted(others))}: PEFT reads them as experts here." if others else None
    names = ", ".join(sorted({_last_name(target) for target in targets}))
    note = f"LoRA is on the attention layers of this mixture-of-experts base ({names})"
    if adapter.experts:
        return f"{note} and on its experts."
    return f"{note} only; --set adapter.experts=true trains its experts too."


def select_expert_weights(model: "torch.nn.Module", experts: bool | Collection[str]) -> tuple[str, ...]:
    """Return the expert weights that `adapter.experts` selects, by their full names if a name has a layer's number."""
    weights = list_expert_weights(model)
    if isinstance(experts, bool):
        return weights if experts else ()
    in_one_layer = [name for name in experts if not _select(weights, [name])]
    return _select(weights, experts) + tuple(list_expert_parameters(model, in_one_layer))


def _select(weights: Collection[str], names: Collection[str]) -> tuple[str, ...]:
    """Return the weights whose path is a name or ends with one."""
    return tuple(weight for weight in weights if any(weight == n or weight.endswith(f".{n}") for n in names))


def _list_linear_layers(model: "torch.nn.Module") -> list[str]:
    """Return the full names of all linear layers."""
    import torch

    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def _is_in_token_mixer(model: "torch.nn.Module", name: str) -> bool:
    """Return whether a linear layer belongs to attention or another module that mixes tokens."""
    *parents, last = _path_in_layer(name).lower().split(".")
    owner_class = type(model.get_submodule(name.rpartition(".")[0])).__name__
    if _FEED_FORWARD_CLASS.search(owner_class) or (_MAMBA_CLASS.search(owner_class) and last != _MAMBA_INPUT):
        return False
    return any(_TOKEN_MIXER.search(parent) for parent in parents) and not any(
        _NO_TOKEN_MIXER.search(part) for part in (*parents, last)
    )


def _path_in_layer(name: str) -> str:
    """Return a full name without everything up to the number of its layer."""
    return _BEFORE_LAYER_NUMBER.sub("", name)


def _last_name(name: str) -> str:
    return name.rpartition(".")[2]
