"""Whole modules that are trained and saved beside LoRA (`adapter.modules_to_save`): embedding, LM head and norms.

PEFT copies such a module, trains the copy and saves it (`ModulesToSaveWrapper`). It matches names by their ends, so
names are resolved to full paths here, and what was wrapped is compared with what may be wrapped.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_chat.errors import IntegrityError, RecipeError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

_MAX_SHOWN_NAMES = 8
_MODULE_WRAPPER, _ROWS_WRAPPER = "ModulesToSaveWrapper", "TrainableTokensWrapper"
"""PEFT's classes around a module that is replaced, and around one whose rows are (peft/utils/other.py)."""


def has_tied_head(model: "PreTrainedModel") -> bool:
    """Return whether the LM head and the embedding of a model without an adapter are one matrix."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def list_savable_modules(model: "PreTrainedModel") -> dict[str, "torch.nn.Module"]:
    """Return the modules that can be trained as a whole, by their full names: embedding, LM head and norms."""
    matrices = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if any(module is matrix for matrix in matrices) or _is_norm(module)
    }


def _is_norm(module: "torch.nn.Module") -> bool:
    """Return whether a module is a layer of vectors only, without layers of its own."""
    parameters = list(module.parameters())
    return (
        bool(parameters) and all(parameter.dim() == 1 for parameter in parameters) and not any(module.children())
    ) and "norm" in type(module).__name__.lower()


def resolve_saved_modules(model: "PreTrainedModel", names: Sequence[str]) -> tuple[str, ...]:
    """Return the full names of the modules that a recipe names. Raise RecipeError for one that cannot be saved.

    A name is a full name or its last parts. If the head shares the embedding's weights, either name means both.
    """
    savable = list_savable_modules(model)
    full_names: list[str] = []
    for name in names:
        matches = [full for full in savable if full == name or full.endswith(f".{name}")]
        if not matches:
            last_parts = list(dict.fromkeys(full.split(".")[-1] for full in savable))[:_MAX_SHOWN_NAMES]
            raise RecipeError(
                f"adapter.modules_to_save: {name} is not the embedding, the LM head or a norm of this base. Choose "
                f"from {', '.join(last_parts)}; other layers are trained by adapter.target_modules."
            )
        full_names += matches
    embedding, head = (
        _name_of(model, layer) for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    if has_tied_head(model) and {embedding, head} & set(full_names):
        if getattr(model.get_output_embeddings(), "bias", None) is not None:
            raise RecipeError(
                f"adapter.modules_to_save: the LM head of this base shares the weights of {embedding} and has a bias, "
                "which PEFT would leave out. Fix: remove both from the list."
            )
        # PEFT trains one matrix for both (`ensure_weight_tying`), and saves it under both names.
        full_names = [name for name in full_names if name != head]
        full_names.append(embedding)
    return tuple(sorted(set(full_names)))


def _name_of(model: "torch.nn.Module", layer: "torch.nn.Module | None") -> str:
    """Return the full name of a layer of a model."""
    names = (name for name, module in model.named_modules(remove_duplicate=False) if module is layer)
    return next(names, "")


def find_embedding_names(model: "PreTrainedModel") -> tuple[str, str]:
    """Return the full names of the embedding and of the LM head."""
    return _name_of(model, model.get_input_embeddings()), _name_of(model, model.get_output_embeddings())


def check_wrapped_modules(model: "PeftModel", savable: Collection[str], name: str) -> None:
    """Raise IntegrityError if PEFT wrapped a module that is neither embedding, head nor norm of the base."""
    prefix = "base_model.model."
    for full, _ in iterate_wrappers(model):
        if full.removeprefix(prefix) not in savable:
            raise IntegrityError(
                f"The adapter {name} does not fit this base: it replaces the whole module {full.removeprefix(prefix)}, "
                "and only the embedding, the LM head and norms can be replaced."
            )


def iterate_wrappers(model: "torch.nn.Module") -> "Iterator[tuple[str, Any]]":
    """Yield the wrappers of modules or rows that are trained beside LoRA, with their full names."""
    for name, module in model.named_modules():
        if type(module).__name__ in (_MODULE_WRAPPER, _ROWS_WRAPPER):
            yield name, module


def keep_hidden_dtype(model: "PeftModel") -> None:
    """Let trained modules read and return the base's dtype, while their weights are in fp32 in training.

    Otherwise an embedding or norm in fp32 would make all hidden states fp32, and a head in fp32 could not read states
    in bf16 outside of autocast. At the end the weights are rounded to the base's dtype, and the hooks change nothing.
    """
    base = model.get_base_model()
    head, dtype = base.get_output_embeddings(), base.dtype
    for _, wrapper in iterate_wrappers(model):
        if wrapper is head:
            # PEFT's wrapper of rows has no such attribute, and its layer for tied weights has both sizes exchanged.
            wrapper.out_features = int(wrapper.weight.shape[0])
        replaces_module = type(wrapper).__name__ == _MODULE_WRAPPER
        if replaces_module and wrapper is head:
            # Under autocast the product casts both to 16 bits anyway.
            wrapper.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(module.weight.dtype), *inputs[1:]))
        elif wrapper is head:
            wrapper.bias = None  # PEFT's wrapper has no such attribute, which TRL's loss reads; other heads are refused
        elif replaces_module:
            wrapper.register_forward_hook(lambda module, inputs, output: output.to(dtype))


def untie_different_head(model: "PreTrainedModel") -> None:
    """Let a merged model save its head if an adapter replaced only one of two matrices that the base ties."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    config = model.config.get_text_config()
    if head is None or head.weight is embedding.weight or not getattr(config, "tie_word_embeddings", False):
        return
    for part in (config, model.config):
        part.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
