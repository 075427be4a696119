"""Logits of a model at some positions, for models that can compute only those and for models that cannot."""

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def compute_logits(model: "PreTrainedModel | PeftModel", positions: "torch.Tensor", **inputs: Any) -> "torch.Tensor":
    """Return the logits (rows, positions, vocabulary) at some positions of every row.

    Most models take the positions and compute no other logits. Some (RWKV, Qwen2-Audio) compute all, or accept the
    argument and ignore it.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        inputs["logits_to_keep"] = positions
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    has_all = logits.shape[1] == inputs["input_ids"].shape[1] != positions.numel()
    return logits.index_select(1, positions) if has_all else logits
