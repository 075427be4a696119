"""Before training: does the fast path give this model's adapter the gradients that the stock path gives it?"""

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
"""bf16 alone leaves about 0.997 between two orders of the same sums; a wrong gradient far less."""


def gradient_cosine(
    model: "PeftModel", ids: Sequence[int], collator: PackedBatchCollator, head: SupervisedLMHead, stock_attention: str
) -> float:
    """Cosine of both gradients of all LoRA weights on a few short dialogues; NaN or 0 if they cannot be compared.

    `ids` are those of any dialogue. Weights, gradients and the attention that is set stay as they are.
    """
    rows = make_sample_dialogues(ids)
    count = sum(label != -100 for row in rows for label in row["labels"][1:])
    trained = [p for p in model.parameters() if p.requires_grad]
    fast_attention = model.config._attn_implementation
    try:
        with without_dropout(model):  # which would make both differ
            with fused_lora(model), fused_layers(model):
                loss = head.loss(move_to_device(collator(rows), model.device), count)
                fast = _concatenate_gradients(torch.autograd.grad(loss, trained, allow_unused=True), trained)
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


def _concatenate_gradients(gradients: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> torch.Tensor:
    pairs = zip(gradients, like, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in pairs])
