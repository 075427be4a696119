"""Attach, load, write and merge LoRA weights (arXiv 2106.09685); the only module that uses PEFT in this process."""

import copy
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.lora_variants import find_initialization
from lora_chat.config.recipe import AdapterSection
from lora_chat.errors import IntegrityError, RecipeError, first_line
from lora_chat.models.adapter_checks import check_adapter_weights, check_stored_parameters, check_stored_targets
from lora_chat.models.adapter_config import LoraSettings, StoredAdapter
from lora_chat.models.adapter_initialization import check_initialization, double_rank, initialize_adapter
from lora_chat.models.architectures import find_architecture
from lora_chat.models.expert_targets import select_targets
from lora_chat.models.layer_selection import is_target
from lora_chat.models.saved_modules import (
    check_wrapped_modules,
    find_embedding_names,
    has_tied_head,
    iterate_wrappers,
    keep_hidden_dtype,
    list_savable_modules,
    resolve_saved_modules,
    untie_different_head,
)
from lora_chat.models.text_layers import find_text_layers
from lora_chat.models.token_rows import (
    check_token_rows,
    grow_embeddings,
    initialize_new_rows,
    merge_token_rows,
    place_token_rows,
)
from lora_chat.system.safetensors_header import MAX_HEADER_BYTES

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

_WEIGHTS_NAME = "adapter_model.safetensors"
_FLOAT32_BYTES = 4
"""Size of a float32 value, in bytes."""
_ORIGINAL_BIASES = "_original_biases"
"""Attribute of a PeftModel with trained biases: the values of the base."""
_BIAS_SUFFIX = ".base_layer.bias"
_DEFAULT_ADAPTER = "default"
"""PEFT's name for a single adapter."""


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of trained and of all parameters."""

    trainable_parameters: int
    all_parameters: int

    @property
    def share(self) -> float:
        """Return the trained share of all parameters, 0 to 1."""
        return self.trainable_parameters / self.all_parameters


def attach_adapter(
    model: "PreTrainedModel",
    adapter: AdapterSection,
    seed: int = 0,
    load_original: "Callable[[], PreTrainedModel] | None" = None,
    new_ids: Collection[int] = (),
) -> "PeftModel":
    """Add new LoRA layers to a base. PEFT changes the base in place and returns it wrapped.

    `load_original` loads the unquantized base for an initialization that needs it. The section names tokens by their
    ids, and `new_ids` are those that the base does not know. Raises RecipeError, with the names of existing modules, if
    a target module does not exist.
    """
    import torch
    from peft import LoraConfig

    grow_embeddings(model, new_ids)
    initialization = find_initialization(adapter.initialization)
    settings = double_rank(resolve_targets(model, adapter), initialization)
    torch.manual_seed(seed)
    start = True if initialization.decomposes_weights else initialization.peft_value
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=start, **settings.to_peft())
    try:
        wrapped = _wrap_in_peft(model, config)
    except ValueError as error:  # a kind of layer that PEFT does not support
        raise RecipeError(
            f"adapter.target_modules: PEFT cannot put LoRA on these layers of this base: {first_line(error)}"
        ) from error
    if settings.replaces_weights:
        keep_hidden_dtype(wrapped)
        initialize_new_rows(wrapped, new_ids)
    if initialization.decomposes_weights and model.device.type != "meta":
        initialize_adapter(wrapped, initialization, load_original() if load_original else None)
    return wrapped


def resolve_targets(model: "PreTrainedModel", adapter: AdapterSection) -> LoraSettings:
    """Return the settings of a recipe with the layers, experts, modules and rows of a base that they select.

    Raises RecipeError for targets that do not exist or cannot be trained.
    """
    settings = select_targets(model, adapter)
    layers = find_text_layers(model)
    if model.device.type == "meta":  # packed weights have other shapes
        names = [name for name in layers.suitable if is_target(name, settings.target_modules)]
        shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in names}
        check_initialization(shapes, adapter, settings)
        if adapter.bias != "none" and not any(getattr(model.get_submodule(n), "bias", None) is not None for n in names):
            raise RecipeError(
                "adapter.bias: none of the adapted layers of this base has a bias. Fix: --set adapter.bias=none."
            )
    placed = place_trained_parts(model, settings)
    if settings.row_ids and not placed.token_rows and not adapter.new_tokens:
        raise RecipeError(
            "adapter.trainable_tokens has no effect, because adapter.modules_to_save trains the embedding and the LM "
            "head as a whole. Fix: leave out one of the two."
        )
    return placed


def list_adapted_layers(skeleton: "PreTrainedModel", settings: LoraSettings) -> dict[str, tuple[int, float]]:
    """Return rank and alpha of each layer of a meta model that settings with resolved targets give LoRA, by name."""
    names = [name for name in find_text_layers(skeleton).suitable if is_target(name, settings.target_modules)]
    return {name: (settings.rank_of(name), settings.alpha_of(name)) for name in names}


def check_adapter_attaches(
    skeleton: "PreTrainedModel", adapter: AdapterSection, new_ids: Collection[int] = ()
) -> LoraSettings:
    """Raise RecipeError unless LoRA can be put on a base, and return its settings. The skeleton is changed.

    The decoder layers of the table are known to carry LoRA, so only their target modules are checked.
    """
    settings = resolve_targets(skeleton, adapter)
    if not find_architecture(skeleton.config.model_type).layer_family:
        attach_adapter(skeleton, adapter, new_ids=new_ids)
    return settings


def place_trained_parts(model: "PreTrainedModel", settings: LoraSettings) -> LoraSettings:
    """Return settings with the full names of the modules and rows that are trained beside LoRA.

    Raises RecipeError for a module that cannot be trained as a whole.
    """
    if not settings.replaces_weights:
        return settings
    names = resolve_saved_modules(model, settings.modules_to_save)
    is_tied = has_tied_head(model) and find_embedding_names(model)[0] in names
    return place_token_rows(model, replace(settings, modules_to_save=names, ties_weights=is_tied))


def _wrap_in_peft(model: "PreTrainedModel", config: "LoraConfig", name: str = _DEFAULT_ADAPTER) -> "PeftModel":
    """Wrap a model into a PeftModel without PEFT's warning about GPT-2."""
    import warnings

    from peft import get_peft_model

    with warnings.catch_warnings():
        # GPT-2's Conv1D stores weights transposed. PEFT detects it, corrects its setting, and warns.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        # A foreign adapter may replace only one of two tied matrices; a merge then writes both.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        wrapped = get_peft_model(model, config, adapter_name=name)
    if config.bias != "none":
        setattr(wrapped, _ORIGINAL_BIASES, {name: bias.detach().clone() for name, bias in _list_biases(wrapped)})
    return wrapped


def _list_biases(model: "PeftModel") -> "list[tuple[str, torch.nn.Parameter]]":
    """Return the biases of the base in all layers with LoRA, by name."""
    return [
        (f"{name}.base_layer.bias", module.base_layer.bias)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and getattr(module.base_layer, "bias", None) is not None
    ]


@contextmanager
def without_adapter(model: "PeftModel") -> Iterator[None]:
    """Make a model compute what its base computes, until the block ends; PEFT does not restore trained biases."""
    originals: dict[str, torch.Tensor] = getattr(model, _ORIGINAL_BIASES, {})
    biases = [(bias, originals[name], bias.data) for name, bias in _list_biases(model) if name in originals]
    try:
        for bias, original, trained in biases:
            bias.data = original.to(trained.device, trained.dtype)
        with model.disable_adapter():
            yield
    finally:
        for bias, _, trained in biases:
            bias.data = trained


def count_trainable_parameters(
    skeleton: "PreTrainedModel", adapter: AdapterSection, new_ids: Collection[int] = ()
) -> int:
    """Return the number of parameters that an adapter trains. The model without weights is changed."""
    return count_parameters(attach_adapter(skeleton, adapter, new_ids=new_ids)).trainable_parameters


def count_parameters(model: "PeftModel") -> ParameterCounts:
    """Count trained and all parameters. Packed 4-bit weights count as the weights that they encode."""
    trainable, everything = model.get_nb_trainable_parameters()
    return ParameterCounts(trainable, everything)


def adapter_weights(model: "PeftModel", name: str = _DEFAULT_ADAPTER) -> "dict[str, torch.Tensor]":
    """Return the tensors of an adapter by the names under which PEFT saves them."""
    from peft import get_peft_model_state_dict

    # The default "auto" asks the hub whether the vocabulary was resized; new rows are the adapter's own weights.
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return weights


def write_peft_adapter(model: "PeftModel", folder: Path) -> None:
    """Write an adapter's weights and config as PEFT's save_pretrained does, without its empty model card."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = _without_shared_memory(adapter_weights(model))
    save_file(weights, folder / _WEIGHTS_NAME, metadata={"format": "pt"})
    config = copy.copy(model.peft_config[model.active_adapter])
    config.inference_mode = True
    config.init_lora_weights = True  # the weights are loaded, so another start (gaussian) says nothing about them
    config.save_pretrained(str(folder))


def _without_shared_memory(weights: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Return contiguous tensors with memory of their own, because PEFT saves tied weights under both names."""
    separate: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, weight in weights.items():
        separate[name] = weight.clone() if weight.data_ptr() in seen else weight.contiguous()
        seen.add(weight.data_ptr())
    return separate


def write_stored_adapter(stored: StoredAdapter, folder: Path, *, scale_in_alpha: bool = False) -> None:
    """Write an adapter's checked settings and weights, and nothing else, as a folder for other programs.

    With `scale_in_alpha`, rsLoRA (arXiv 2312.03732) and layers with other alphas are written as plain LoRA of the same
    function with one alpha, because llama.cpp's converter ignores `use_rslora` and `alpha_pattern`.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    settings = validate_adapter_config(stored)
    weights = stored.read_weights()
    if scale_in_alpha:
        settings = settings.with_scale_in_alpha()
        settings, weights = _scale_b_in_place_of_alphas(settings, weights)
    config = settings.to_peft_file(*stored.base)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(weights, folder / _WEIGHTS_NAME, metadata={"format": "pt"})


def _scale_b_in_place_of_alphas(
    settings: LoraSettings, weights: "dict[str, torch.Tensor]"
) -> "tuple[LoraSettings, dict[str, torch.Tensor]]":
    """Return settings without alphas of single layers, and weights whose matrices B have them as a factor."""
    if not settings.alpha_pattern:
        return settings, weights
    scaled = {}
    for key, weight in weights.items():
        layer, is_b, _ = key.removeprefix("base_model.model.").partition(".lora_B.")
        scaled[key] = weight.float() * (settings.alpha_of(layer) / settings.alpha) if is_b else weight.float()
    return replace(settings, alpha_pattern=()), scaled


def encode_stored_weights(stored: StoredAdapter) -> bytes:
    """Return an adapter's weights as `write_peft_adapter` and parcels have them. Raise IntegrityError."""
    from safetensors.torch import save

    weights = {name: weight.contiguous() for name, weight in stored.read_weights().items()}
    return save(weights, metadata={"format": "pt"})


def validate_adapter_config(stored: StoredAdapter) -> LoraSettings:
    """Return the settings of an adapter, checked against PEFT's defaults. Raises IntegrityError."""
    return LoraSettings.from_peft(stored.config, stored.name, read_peft_defaults())


def read_peft_defaults() -> dict[str, object]:
    """Return PEFT's defaults of all settings of a LoRA adapter."""
    from peft import LoraConfig

    return dict(LoraConfig().to_dict())


def load_adapter(model: "PreTrainedModel", stored: StoredAdapter) -> "PeftModel":
    """Attach a saved adapter after checking its settings, names, shapes and values.

    The check is needed because PEFT loads with strict=False: missing keys leave the base unchanged, and unknown keys
    may replace its weights. Raises IntegrityError, which names the problem.
    """
    return load_adapters(model, [(stored, 1.0)])


def continue_adapter(model: "PreTrainedModel", stored: StoredAdapter, dropout: float, seed: int = 0) -> "PeftModel":
    """Attach a saved adapter to be trained on, with another dropout; PEFT changes the model in place.

    The trained values are those of the file, in fp32. Raises IntegrityError for an adapter that does not fit.
    """
    import torch

    torch.manual_seed(seed)  # as for a new adapter, because dropout draws from the same state
    wrapped = attach_named_adapter(
        model, replace(stored, config={**stored.config, "lora_dropout": dropout}), _DEFAULT_ADAPTER
    )
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return wrapped


@contextmanager
def exchanged_adapter(model: "PeftModel", stored: StoredAdapter) -> Iterator[None]:
    """Put the weights of another adapter of the same settings into a model during the block. Raise IntegrityError."""
    from peft import set_peft_model_state_dict

    weights = stored.read_weights()
    check_adapter_weights(weights, adapter_weights(model), stored.name)
    parameters = {name: p for name, p in model.named_parameters() if f".{_DEFAULT_ADAPTER}" in name}
    child_tensors = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            # A copy, because PEFT writes into the tensor.
            saved = weights.get(name.replace(f".{_DEFAULT_ADAPTER}", ""))
            parameter.data = child_tensors[name].to(
                child_tensors[name].dtype if saved is None else saved.dtype, copy=True
            )
        set_peft_model_state_dict(model, weights, adapter_name=_DEFAULT_ADAPTER)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = child_tensors[name]


def load_adapters(model: "PreTrainedModel", adapters: Sequence[tuple[StoredAdapter, float]]) -> "PeftModel":
    """Attach several adapters, whose updates are multiplied by their weights and summed. Raises IntegrityError."""
    wrapped: PreTrainedModel | PeftModel = model
    names = [_DEFAULT_ADAPTER, *(f"adapter_{number}" for number in range(1, len(adapters)))]
    for name, (stored, weight) in zip(names, adapters, strict=True):
        wrapped = attach_named_adapter(wrapped, stored, name)
        if weight != 1:
            _scale_adapter(wrapped, name, weight)
    wrapped.base_model.set_adapter(names)
    wrapped.requires_grad_(False)
    merge_token_rows(wrapped)
    loaded: PeftModel = wrapped.eval()
    return loaded


def check_adapter_fits(skeleton: "PreTrainedModel", stored: StoredAdapter) -> None:
    """Raise IntegrityError unless an adapter has exactly the weights that its config implies for a meta model."""
    _, expected = _attach_stored_layers(skeleton, stored, _DEFAULT_ADAPTER)
    check_adapter_weights(stored.read_weights(), expected, stored.name)


def attach_named_adapter(model: "PreTrainedModel | PeftModel", stored: StoredAdapter, name: str) -> "PeftModel":
    """Attach an adapter under a name and load its checked weights.

    Raises IntegrityError for an adapter that does not fit, and leaves the model as it was.
    """
    from peft import set_peft_model_state_dict

    wrapped, expected = _attach_stored_layers(model, stored, name)
    try:
        weights = stored.read_weights()
        check_adapter_weights(weights, expected, stored.name)
    except BaseException:
        _detach(wrapped, name, is_first=wrapped is not model)
        raise
    set_peft_model_state_dict(wrapped, weights, adapter_name=name)
    # PEFT stores them in fp32. The file's dtype gives the function that was trained.
    for full, parameter in wrapped.named_parameters():
        saved = weights.get(full.replace(f".{name}", "")) if f".{name}" in full else None
        if saved is not None:
            parameter.data = parameter.data.to(saved.dtype)
    return wrapped


def attach_adapter_with_biases(
    model: "PreTrainedModel | PeftModel", stored: StoredAdapter, name: str
) -> "tuple[PeftModel, list[tuple[torch.nn.Parameter, torch.Tensor]]]":
    """Attach an adapter under a name without its trained biases, and return them with the biases of the base.

    PEFT writes the biases of an adapter into the base, and allows one such adapter. Raises IntegrityError.
    """
    weights = stored.read_weights()
    biases = {key: weight for key, weight in weights.items() if key.endswith(_BIAS_SUFFIX)}
    plain = {key: weight for key, weight in weights.items() if key not in biases}
    config = {**stored.config, "bias": "none"}
    size = max(0, stored.size - sum(bias.nbytes for bias in biases.values()))
    wrapped = attach_named_adapter(model, replace(stored, config=config, read_weights=lambda: plain, size=size), name)
    expected = {
        f"{layer}{_BIAS_SUFFIX}": module.base_layer.bias
        for layer, module in wrapped.named_modules()
        if name in getattr(module, "lora_A", ()) and getattr(module.base_layer, "bias", None) is not None
    }
    try:
        check_adapter_weights(biases, {key: bias.data for key, bias in expected.items()}, stored.name)
    except BaseException:
        _detach(wrapped, name, is_first=wrapped is not model)
        raise
    return wrapped, [(bias, biases[key].to(bias.device, bias.dtype)) for key, bias in expected.items()]


def _detach(model: "PeftModel", name: str, *, is_first: bool) -> None:
    """Remove an adapter that does not fit, and with the first one PEFT's layers."""
    model.delete_adapter(name)
    if is_first:
        model.unload()


def _attach_stored_layers(
    model: "PreTrainedModel | PeftModel", stored: StoredAdapter, name: str
) -> "tuple[PeftModel, dict[str, torch.Tensor]]":
    """Add new LoRA layers for an adapter's checked settings, and return them with their weights by name."""
    from peft import LoraConfig, PeftModel

    settings = validate_adapter_config(stored)
    base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    if not settings.token_rows and any(hasattr(wrapper, "token_adapter") for _, wrapper in iterate_wrappers(base)):
        raise IntegrityError(
            f"The adapter {stored.name} cannot be loaded after an adapter that replaces rows of tokens, because PEFT "
            "expects such rows of every adapter then. Fix: load it before."
        )
    check_stored_targets(base, settings.target_modules, stored.name)
    savable: Collection[str] = ()
    if settings.replaces_weights:
        replaced = {name for name, _ in iterate_wrappers(base)}  # by adapters that were attached before
        if replaced and max(stored.new_token_ids, default=0) >= base.get_input_embeddings().weight.shape[0]:
            raise IntegrityError(
                f"The adapter {stored.name} adds tokens to the base, and another adapter in memory replaces parts of "
                "it. Fix: load the one that adds tokens first."
            )
        grow_embeddings(base, stored.new_token_ids)
        check_token_rows(base, settings, stored.new_token_ids, stored.name)
        savable = list_savable_modules(base).keys() | replaced
    if not isinstance(settings.experts, bool):
        check_stored_parameters(base, settings.experts, stored.name)
    config = LoraConfig(task_type="CAUSAL_LM", **settings.to_peft())
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
            wrapped = model
        else:
            wrapped = _wrap_in_peft(model, config, name)
    except ValueError as error:
        raise IntegrityError(f"The adapter {stored.name} does not fit this base: {error}") from error
    try:
        if settings.replaces_weights:
            check_wrapped_modules(wrapped, savable, stored.name)
            keep_hidden_dtype(wrapped)
        expected = adapter_weights(wrapped, name)
        max_bytes = sum(weight.numel() for weight in expected.values()) * _FLOAT32_BYTES + MAX_HEADER_BYTES
        if stored.size > max_bytes:  # checked before the file is read into memory
            raise IntegrityError(
                f"The adapter {stored.name} does not fit this base: its weights take {stored.size:,} bytes, "
                f"and {max_bytes:,} are enough."
            )
    except BaseException:
        _detach(wrapped, name, is_first=wrapped is not model)
        raise
    return wrapped, expected


def _scale_adapter(model: "PeftModel", name: str, weight: float) -> None:
    """Multiply the update of an attached adapter by a weight."""
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and name in scaling:
            scaling[name] *= weight


def merge_adapter(model: "PeftModel") -> "PreTrainedModel":
    """Merge the active adapters into the weights. Raises ValueError for non-finite values. Not for a quantized base."""
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    untie_different_head(merged)
    return merged


def make_lora_plus_optimizer(
    model: "PeftModel",
    optimizer_class: "type[torch.optim.Optimizer]",
    options: Mapping[str, object],
    *,
    ratio: float,
    weight_decay: float,
) -> "torch.optim.Optimizer":
    """Return PEFT's LoRA+ optimizer (arXiv 2402.12354), without its empty groups.

    `options` are the optimizer's arguments, among them the learning rate of the matrices A.
    """
    from peft.optimizers import create_loraplus_optimizer

    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        model, optimizer_class, loraplus_lr_ratio=ratio, loraplus_weight_decay=weight_decay, **options
    )
    # A fused optimizer and a checkpoint gain nothing from groups without parameters.
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer
