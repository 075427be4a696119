"""Several adapters on one base in memory, each used by its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_chat.models.adapter import attach_named_adapter, without_adapter
from lora_chat.models.adapter_config import StoredAdapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_PREFIX = "served_"
"""Beginning of the names that PEFT gets, so that a user's name is never one of PEFT's own."""


def add_adapter(model: "PreTrainedModel", stored: StoredAdapter, number: int) -> "tuple[PreTrainedModel, str]":
    """Attach an adapter to a base or to an adapted model. Return the adapted model and PEFT's name of the adapter.

    Raises IntegrityError for an adapter that does not fit.
    """
    name = f"{_PREFIX}{number}"
    wrapped = attach_named_adapter(model, stored, name)
    wrapped.requires_grad_(False)
    return wrapped.eval(), name


def remove_adapter(model: "PeftModel", name: str) -> "PreTrainedModel":
    """Remove an adapter and free its memory. Return the model, which is the bare base after the last adapter."""
    if len(model.peft_config) == 1:
        return model.unload()
    model.delete_adapter(name)
    model.active_adapter = next(iter(model.peft_config))
    model.base_model.set_adapter(model.active_adapter)
    return model.requires_grad_(False)


@contextmanager
def using_adapter(model: "PreTrainedModel | PeftModel", name: str | None) -> Iterator[None]:
    """Make a model compute what its base computes with one adapter, or with none if the name is None."""
    if not hasattr(model, "disable_adapter"):
        yield
    elif name is None:
        with without_adapter(model):
            yield
    else:
        model.base_model.set_adapter(name)
        model.active_adapter = name
        yield
