"""Before training: do flat rows say of this model what its dialogues say alone?

A layer that mixes tokens other than by attention (state space, convolution) would see the neighbours.
"""

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from lora_chat.models.quantization.dequantize import is_int8_linear
from lora_chat.training.fast_path.attention.interface import SharedPrefixUnsupportedError
from lora_chat.training.fast_path.lm_head_loss import split_supervised
from lora_chat.training.fast_path.packed_batch import EncodedIds, PackedBatchCollator, move_to_device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peft import PeftModel

_MAX_SAMPLE_TOKENS = 48
_LOGIT_TOLERANCE = 0.05
"""Relative difference of logits: bf16 rounding makes 0.01 to 0.07, a neighbour that is seen far more."""
_MAX_ROUNDING_DIFFERENCE = 0.15
"""More is not put down to rounding."""


def find_packed_collator(model: "PeftModel", ids: "Sequence[int]", stock_attention: str) -> PackedBatchCollator | None:
    """The fastest way to flatten rows that agrees with `stock_attention` on each dialogue alone; None if none does.

    `ids` are those of any dialogue; `model` has the attention that flat rows would be trained with.
    """
    return next(
        (
            collator
            for collator in (PackedBatchCollator(share_prefix=True), PackedBatchCollator(share_prefix=False))
            if _matches_separate_logits(model, ids, collator, stock_attention)
        ),
        None,
    )


def make_sample_dialogues(ids: "Sequence[int]") -> list[EncodedIds]:
    """Three short ones of these ids that begin alike and are trained in their second half."""
    first = list(ids[:_MAX_SAMPLE_TOKENS])
    half = len(first) // 2
    dialogues = [first, first[:half] + first[:half:-1], first[:half] + first[half - 1 :: -1]]
    return [{"input_ids": d, "labels": [-100] * (half + 1) + d[half + 1 :]} for d in dialogues]


@contextmanager
def without_dropout(model: "PeftModel") -> "Iterator[None]":
    """Evaluation mode, but for LLM.int8's layers, which outside of training round activations too."""
    was_training = model.training
    model.eval()
    for module in model.modules():
        if is_int8_linear(module):
            module.train()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def _matches_separate_logits(
    model: "PeftModel", ids: "Sequence[int]", collator: PackedBatchCollator, stock_attention: str
) -> bool:
    dialogues = make_sample_dialogues(ids)
    batch = move_to_device(split_supervised(collator(dialogues))[2], model.device)
    prefix = batch.get("shared_prefix", 0)
    was_training = model.training
    fast_attention = model.config._attn_implementation
    try:
        model.train()
        model(**batch, use_cache=False)  # dropout of attention is only seen here
        with without_dropout(model):
            packed_logits = model(**batch, use_cache=False).logits[0].float()
            separate_logits = _concatenate_separate_logits(model, dialogues, prefix, stock_attention)
            distance = _relative_difference(packed_logits, separate_logits)
            if distance <= _LOGIT_TOLERANCE:
                return True
            # In bf16 two attentions of transformers itself may differ by as much.
            rounding = _relative_difference(
                _concatenate_separate_logits(model, dialogues, prefix, "eager"), separate_logits
            )
    except SharedPrefixUnsupportedError:
        return False
    finally:
        model.set_attn_implementation(fast_attention)
        model.train(was_training)
    return distance <= min(2 * rounding, _MAX_ROUNDING_DIFFERENCE)


def compute_separate_logits(model: "PeftModel", dialogues: "Sequence[EncodedIds]") -> list[torch.Tensor]:
    """Logits (tokens, vocabulary) of dialogues that are rows of their own, in the attention that is set.

    In one batch: what is filled up behind a dialogue, no causal model can see.
    """
    rows = [dialogue["input_ids"] for dialogue in dialogues]
    longest = max(map(len, rows))
    padded_ids = torch.tensor([row + row[:1] * (longest - len(row)) for row in rows], device=model.device)
    batch_logits = model(input_ids=padded_ids, use_cache=False).logits
    return [logits[: len(row)] for logits, row in zip(batch_logits, rows, strict=True)]


def _concatenate_separate_logits(
    model: "PeftModel", dialogues: "Sequence[EncodedIds]", prefix: int, attention: str
) -> torch.Tensor:
    model.set_attn_implementation(attention)
    first, *rest = compute_separate_logits(model, dialogues)
    return torch.cat([first, *(logits[prefix:] for logits in rest)]).float()


def _relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / (expected - expected.mean()).norm())
