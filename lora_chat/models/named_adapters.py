"""Several adapters on one base in memory, each used by its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_chat.models.adapter import attach_adapter_with_biases, attach_named_adapter, without_adapter
from lora_chat.models.adapter_config import StoredAdapter

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

_PREFIX = "served_"
"""Beginning of the names that PEFT gets, so that a user's name is never one of PEFT's own."""
_PLAIN_LORA_LAYERS = ("Linear", "Linear4bit", "Linear8bitLt")
"""PEFT's LoRA layers around linear layers (peft/tuners/lora/layer.py and bnb.py)."""
_OTHER_PARTS = ("lora_A", "lora_embedding_A", "modules_to_save", "trainable_tokens_delta")
"""Attributes of PEFT's other layers that have an entry for each adapter."""

_OWN_PARTS = "_own_parts"
"""Attribute of the adapted model with the parts of adapters that PEFT does not keep apart."""


@dataclass
class _OwnParts:
    """Parts of adapters that PEFT writes into the base."""

    base_rows: int
    """Rows of the embedding before any adapter."""
    biases: "dict[str, list[tuple[torch.nn.Parameter, torch.Tensor]]]" = field(default_factory=dict)
    """Biases of the base with their trained values, by adapter."""
    vocabularies: dict[str, int] = field(default_factory=dict)
    """Rows of the embedding, by adapters that add tokens."""


def add_adapter(model: "PreTrainedModel", stored: StoredAdapter, number: int) -> "tuple[PreTrainedModel, str]":
    """Attach an adapter to a base or to an adapted model. Return the adapted model and PEFT's name of the adapter.

    Raises IntegrityError for an adapter that does not fit.
    """
    name = f"{_PREFIX}{number}"
    num_rows = model.get_input_embeddings().weight.shape[0]
    if stored.has_biases:
        wrapped, biases = attach_adapter_with_biases(model, stored, name)
    else:
        wrapped, biases = attach_named_adapter(model, stored, name), []
    parts = vars(wrapped).setdefault(_OWN_PARTS, _OwnParts(num_rows))
    parts.biases[name] = biases
    if stored.new_token_ids:
        parts.vocabularies[name] = max(stored.new_token_ids) + 1
    wrapped.requires_grad_(False)
    return wrapped.eval(), name


def remove_adapter(model: "PeftModel", name: str) -> "PreTrainedModel":
    """Remove an adapter and free its memory. Return the model, which is the bare base after the last adapter."""
    model.delete_adapter(name)
    if not model.peft_config:  # unloaded before, an active adapter would leave the modules that it replaces
        return model.unload()
    if parts := vars(model).get(_OWN_PARTS):
        parts.biases.pop(name, None)
        parts.vocabularies.pop(name, None)
    model.active_adapter = next(iter(model.peft_config))
    model.base_model.set_adapter(model.active_adapter)
    return model.requires_grad_(False)


def discard_adapter(model: "PreTrainedModel | PeftModel", number: int) -> "PreTrainedModel":
    """Remove the parts of an adapter that `add_adapter` could not attach. Return the model as it was before."""
    name = f"{_PREFIX}{number}"
    if hasattr(model, "disable_adapter"):
        return remove_adapter(model, name) if name in model.peft_config else model
    for path, module in list(model.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):  # PEFT changes a bare base in place
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model


@contextmanager
def using_adapter(model: "PreTrainedModel | PeftModel", name: str | None) -> Iterator[None]:
    """Make a model compute what its base computes with one adapter, or with none if the name is None."""
    if not hasattr(model, "disable_adapter"):
        yield
    elif name is None:
        with without_adapter(model):
            yield
    else:
        model.base_model.set_adapter(name, inference_mode=True)
        model.active_adapter = name
        parts: _OwnParts | None = vars(model).get(_OWN_PARTS)
        biases = parts.biases.get(name, []) if parts else []
        originals = [parameter.data for parameter, _ in biases]
        try:
            for parameter, trained in biases:
                parameter.data = trained
            yield
        finally:
            for (parameter, _), original in zip(biases, originals, strict=True):
                parameter.data = original


def read_vocabulary_size(model: "PreTrainedModel | PeftModel", name: str | None) -> int | None:
    """Return the number of rows of the embedding that an adapter knows, if others have added rows; None: all rows."""
    parts: _OwnParts | None = vars(model).get(_OWN_PARTS)
    return parts.vocabularies.get(name or "", parts.base_rows) if parts and parts.vocabularies else None


def is_plain_lora_layer(module: "torch.nn.Module") -> bool:
    """Return whether a module is PEFT's LoRA layer around a linear layer, dense or of packed weights."""
    kind = type(module)
    return kind.__module__.startswith("peft.tuners.lora.") and kind.__name__ in _PLAIN_LORA_LAYERS


def is_plain_lora(model: "PeftModel", name: str) -> bool:
    """Return whether an adapter only adds products of matrices A and B to linear layers, without any other parts."""
    module: Any
    for module in model.modules():
        if is_plain_lora_layer(module):
            if name in module.lora_A and (name in module.lora_variant or module.lora_B[name].bias is not None):
                return False
        elif any(name in (getattr(module, attribute, None) or ()) for attribute in _OTHER_PARTS):
            return False
    parts: _OwnParts | None = vars(model).get(_OWN_PARTS)
    return not (parts and parts.biases.get(name))
