"""Before training: do flat rows say of this model what its dialogues say alone?

A layer that mixes tokens other than by attention (state space, convolution) would see the neighbours.
"""

from typing import TYPE_CHECKING

import torch

from lora_chat.training.attention import PrefixNotSharedError
from lora_chat.training.flat_rows import FlatRows, put_on
from lora_chat.training.supervised_head import split_supervised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftModel

_LENGTH = 48
_TOLERANCE = 0.05
"""Relative difference of logits: bf16 rounding makes about 0.01, a neighbour that is seen far more."""


def find_flat_rows(model: "PeftModel", ids: "Sequence[int]", stock_attention: str) -> FlatRows | None:
    """The fastest way to flatten rows that agrees with `stock_attention` on each dialogue alone; None if none does.

    `ids` are those of any dialogue; `model` has the attention that flat rows would be trained with.
    """
    return next(
        (rows for rows in (FlatRows(share=True), FlatRows(share=False)) if _agrees(model, ids, rows, stock_attention)),
        None,
    )


def make_dialogues(ids: "Sequence[int]") -> list[dict[str, list[int]]]:
    """Three short ones of these ids that begin alike and are trained in their second half."""
    first = list(ids[:_LENGTH])
    half = len(first) // 2
    dialogues = [first, first[:half] + first[:half:-1], first[:half] + first[half - 1 :: -1]]
    return [{"input_ids": d, "labels": [-100] * (half + 1) + d[half + 1 :]} for d in dialogues]


@torch.no_grad()
def _agrees(model: "PeftModel", ids: "Sequence[int]", flat: FlatRows, stock_attention: str) -> bool:
    dialogues = make_dialogues(ids)
    batch = put_on(split_supervised(flat(dialogues))[2], model.device)
    prefix = batch.get("shared_prefix", 0)
    was_training = model.training
    fast = model.config._attn_implementation
    try:
        model.train()
        model(**batch, use_cache=False)  # dropout of attention is only seen here
        model.eval()
        together = model(**batch, use_cache=False).logits[0].float()
        model.set_attn_implementation(stock_attention)
        alone = [
            model(input_ids=torch.tensor([d["input_ids"]], device=model.device), use_cache=False).logits[0].float()
            for d in dialogues
        ]
    except PrefixNotSharedError:
        return False
    finally:
        model.set_attn_implementation(fast)
        model.train(was_training)
    expected = torch.cat([alone[0], *(logits[prefix:] for logits in alone[1:])])
    return bool((together - expected).norm() <= _TOLERANCE * (expected - expected.mean()).norm())
