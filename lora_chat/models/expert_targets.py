"""The layers and experts that a recipe trains on a base, in the names that PEFT takes."""

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.errors import RecipeError
from lora_chat.models.adapter_checks import check_targets_exist
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.experts import (
    check_experts_exist,
    check_no_experts,
    has_experts,
    list_attention_layers,
    list_expert_parameters,
    select_expert_weights,
    shorten_names,
)
from lora_chat.models.layer_selection import select_decoder_layers, select_layers
from lora_chat.models.text_layers import find_text_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def select_targets(model: "PreTrainedModel", adapter: AdapterSection) -> LoraSettings:
    """Return the settings of a recipe with the layers and experts of a base that they select.

    Towers for pictures and sound, and layers that cannot carry LoRA, are left out. On a mixture-of-experts base,
    `all-linear` selects the layers of attention, because PEFT would add the experts and routers of some bases under
    other names and with another rank (peft/utils/transformers_weight_conversion.py). Raises RecipeError for targets
    that do not exist or cannot be trained.
    """
    settings = LoraSettings.from_section(adapter)

    def is_converted(target: str) -> bool:
        return _is_converted_by_peft(model, target)

    check_experts_exist(model, adapter.experts)
    if not isinstance(adapter.target_modules, str):
        check_no_experts(model, adapter.target_modules, is_converted)
        check_targets_exist(model, adapter.target_modules)
    layers = find_text_layers(model)
    suitable = layers.suitable
    # PEFT converts by the architecture, so also where a base of it has dense layers only.
    is_affected = has_experts(model) or any(map(is_converted, {name.rpartition(".")[2] for name in suitable}))
    attention_only = adapter.target_modules == "all-linear" and is_affected
    if attention_only:
        suitable = list_attention_layers(model, suitable, is_converted)
        if not suitable:
            raise RecipeError(
                "adapter.target_modules: no attention layers are known in this mixture-of-experts base. "
                "Fix: name the layers, for example --set adapter.target_modules=[q_proj,v_proj]"
            )
    if attention_only:
        settings = replace(settings, target_modules=shorten_names(model, suitable))
    else:
        settings = replace(settings, target_modules=layers.select(settings.target_modules))
    if adapter.selects_layers and adapter.target_modules:
        settings = select_layers(suitable, model, adapter, settings)
    check_no_experts(model, settings.target_modules, is_converted)
    return replace(settings, experts=_select_experts(model, adapter) or False)


def _select_experts(model: "PreTrainedModel", adapter: AdapterSection) -> tuple[str, ...]:
    """Return the names of the trained expert weights; full names if only some decoder layers are selected."""
    if adapter.layers is None or not adapter.experts:
        return select_expert_weights(model, adapter.experts)
    names = list_expert_parameters(model, adapter.experts)
    return tuple(sorted(select_decoder_layers(model, names, adapter.layers)))


def _is_converted_by_peft(model: "PreTrainedModel", target: str) -> bool:
    """Return whether PEFT replaces a target module by the experts or routers that had its name in Transformers 4."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[target])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # a projection that is only converted together with another one
        return True
    return target not in (config.target_modules or ())
