"""Check before training that the fast path gives the adapter the same gradients as the stock path."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lora_chat.training.fast_path.check_packing import compute_separate_logits, make_sample_dialogues, without_dropout
from lora_chat.training.fast_path.fused_lora import fused_lora
from lora_chat.training.fast_path.layers.decoder_layer import fused_layers
from lora_chat.training.fast_path.lm_head_loss import SupervisedLMHead
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator, move_to_device

if TYPE_CHECKING:
    from peft import PeftModel

MIN_GRADIENT_COSINE = 0.98
"""Smallest cosine that passes. Rounding in bf16 alone leaves about 0.997, and a wrong gradient far less."""


def gradient_cosine(
    model: "PeftModel", ids: Sequence[int], collator: PackedBatchCollator, head: SupervisedLMHead, stock_attention: str
) -> float:
    """Return the cosine between fast and stock gradients of all LoRA weights; NaN or 0 if they cannot be compared.

    The sample is a few short dialogues made from `ids`, the tokens of any dialogue. Weights, gradients and the
    current attention stay the same.
    """
    rows = make_sample_dialogues(ids)
    count = sum(label != -100 for row in rows for label in row["labels"][1:])
    trained = [p for p in model.parameters() if p.requires_grad]
    fast_attention = model.config._attn_implementation
    try:
        with without_dropout(model):  # dropout would make the two passes differ
            # Fast path: packed rows, fused layers, LM head on supervised positions.
            with fused_lora(model), fused_layers(model):
                loss = head.loss(move_to_device(collator(rows), model.device), count)
                fast = _concatenate_gradients(torch.autograd.grad(loss, trained, allow_unused=True), trained)
            # Stock path: padded rows, the model's own layers and logits.
            model.set_attn_implementation(stock_attention)
            losses = []
            for row, logits in zip(rows, compute_separate_logits(model, rows), strict=True):
                targets = torch.tensor(row["labels"][1:], device=model.device)
                losses.append(torch.nn.functional.cross_entropy(logits[:-1].float(), targets, reduction="sum") / count)
            stock = _concatenate_gradients(
                torch.autograd.grad(torch.stack(losses).sum(), trained, allow_unused=True), trained
            )
    finally:
        model.set_attn_implementation(fast_attention)
    return float(torch.nn.functional.cosine_similarity(fast, stock, dim=0))


def _concatenate_gradients(
    gradients: Sequence[torch.Tensor | None], parameters: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return all gradients as one vector in fp32, with zeros for parameters without a gradient."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in pairs])
