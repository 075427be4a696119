"""Check before training that a packed batch gives the same logits as each dialogue alone.

A layer that mixes tokens other than by attention (state space, convolution) would mix the packed dialogues. The logits
alone do not always show it, because a convolution changes only the first tokens of a dialogue, and sometimes by less
than rounding. So the gradient of a dialogue's logits for the embeddings of the others is computed: it must be zero.
"""

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from lora_chat.models.architectures import find_architecture
from lora_chat.models.quantization.dequantize import is_int8_linear
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.training.fast_path.attention.interface import SharedPrefixUnsupportedError
from lora_chat.training.fast_path.lm_head_loss import split_supervised
from lora_chat.training.fast_path.packed_batch import (
    EncodedIds,
    PackedBatchCollator,
    move_to_device,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from peft import PeftModel

_MAX_SAMPLE_TOKENS = 48
_MAX_SAMPLE_ROWS = 8
"""Number of tokens with trained rows that a sample contains."""
_LOGIT_TOLERANCE = 0.05
"""Largest relative difference of logits that passes. Rounding in bf16 causes 0.01 to 0.07, mixed dialogues far more."""
MAX_ROUNDING_DIFFERENCE = 0.15
"""Largest relative difference of logits that rounding can explain."""


def find_packed_collator(model: "PeftModel", ids: "Sequence[int]", stock_attention: str) -> PackedBatchCollator | None:
    """Return the fastest collator whose logits agree with `stock_attention` on separate dialogues, or None.

    `ids` are the tokens of any dialogue. The model already has the attention for packed rows.
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
    """Make three short dialogues that share their first half and have labels in the second half."""
    first = list(ids[:_MAX_SAMPLE_TOKENS])
    half = len(first) // 2
    dialogues = [first, first[:half] + first[:half:-1], first[:half] + first[half - 1 :: -1]]
    return [{"input_ids": d, "labels": [-100] * (half + 1) + d[half + 1 :]} for d in dialogues]


def add_trained_tokens(model: "PeftModel", ids: "Sequence[int]") -> "Sequence[int]":
    """Return sample ids with some of the tokens whose rows are trained, so that their gradients are compared too."""
    indices = model.peft_config[model.active_adapter].trainable_token_indices or ()
    rows = list(next(iter(indices.values()))) if isinstance(indices, dict) else list(indices)
    sample = list(ids[:_MAX_SAMPLE_TOKENS])
    half = len(sample) // 2
    for number, token in enumerate(rows[:_MAX_SAMPLE_ROWS]):
        for begin in (1, half + 1):  # the second half has labels
            if begin + number < len(sample) - 1:
                sample[begin + number] = token
    return [*sample, *ids[_MAX_SAMPLE_TOKENS:]] if rows else ids


@contextmanager
def without_dropout(model: "PeftModel") -> "Iterator[None]":
    """Set evaluation mode, except for LLM.int8's layers, which round activations too outside of training."""
    with restored_modes(model):
        model.eval()
        for module in model.modules():
            if is_int8_linear(module):
                module.train()
        yield


@contextmanager
def restored_modes(model: torch.nn.Module) -> "Iterator[None]":
    """Restore at the end of the block whether each module is in training mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


@torch.no_grad()
def _matches_separate_logits(
    model: "PeftModel", ids: "Sequence[int]", collator: PackedBatchCollator, stock_attention: str
) -> bool:
    """Return whether the logits of packed sample dialogues equal their separate logits up to rounding."""
    dialogues = make_sample_dialogues(ids)
    batch = move_to_device(split_supervised(collator(dialogues))[2], model.device)
    prefix = batch.get("shared_prefix", 0)
    fast_attention = model.config._attn_implementation
    try:
        # Only a forward in training mode shows whether attention has dropout, which packed rows do not support.
        with restored_modes(model):
            model.train()
            model(**batch, use_cache=False)
        with without_dropout(model):
            if _leaks(model, dialogues, collator):
                return False
            packed_logits = model(**batch, use_cache=False).logits[0].float()
            separate_logits = _concatenate_separate_logits(model, dialogues, prefix, stock_attention)
            distance = relative_difference(packed_logits, separate_logits)
            if distance <= _LOGIT_TOLERANCE:
                return True
            # In bf16, two attention functions of transformers itself may differ as much.
            rounding = relative_difference(
                _concatenate_separate_logits(model, dialogues, prefix, "eager"), separate_logits
            )
    except SharedPrefixUnsupportedError:
        return False
    except Exception as error:
        # Some models refuse packed rows, for example linear attention without its kernels.
        if is_out_of_memory(error) or find_architecture(model.config.model_type).layer_family:
            raise
        return False
    finally:
        model.set_attn_implementation(fast_attention)
    return distance <= min(2 * rounding, MAX_ROUNDING_DIFFERENCE)


def _leaks(model: "PeftModel", dialogues: "Sequence[EncodedIds]", collator: PackedBatchCollator) -> bool:
    """Return whether the logits of the last packed dialogue depend on the tokens of the others.

    The gradient is exactly zero without a leak, in every dtype, because masked attention multiplies with zeros.
    """
    batch = split_supervised(move_to_device(collator(dialogues), model.device))[2]
    num_tokens = len(dialogues[-1]["input_ids"]) - batch.get("shared_prefix", 0)
    embeddings: list[torch.Tensor] = []

    def record(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        """Make the embeddings leaves of the graph."""
        embeddings.append(output.detach().requires_grad_())
        return embeddings[-1]

    hook = model.get_input_embeddings().register_forward_hook(record)
    try:
        with torch.enable_grad():
            logits = model(**batch, use_cache=False).logits[0, -num_tokens:]
            gradients = torch.autograd.grad(logits.float().square().sum(), embeddings)
    finally:
        hook.remove()
    others = slice(batch.get("shared_prefix", 0), -num_tokens)
    return not gradients or any(bool((gradient[0, others] != 0).any()) for gradient in gradients)


def compute_separate_logits(model: "PeftModel", dialogues: "Sequence[EncodedIds]") -> list[torch.Tensor]:
    """Compute the logits (tokens, vocabulary) of each dialogue in a row for itself, with the current attention.

    The rows are padded to one batch, because a causal model cannot see the padding after a dialogue.
    """
    rows = [dialogue["input_ids"] for dialogue in dialogues]
    longest = max(map(len, rows))
    padded_ids = torch.tensor([row + row[:1] * (longest - len(row)) for row in rows], device=model.device)
    batch_logits = model(input_ids=padded_ids, use_cache=False).logits
    return [logits[: len(row)] for logits, row in zip(batch_logits, rows, strict=True)]


def _concatenate_separate_logits(
    model: "PeftModel", dialogues: "Sequence[EncodedIds]", prefix: int, attention: str
) -> torch.Tensor:
    """Return the separate logits in the order of a packed batch, which contains the shared prefix once."""
    model.set_attn_implementation(attention)
    first, *rest = compute_separate_logits(model, dialogues)
    return torch.cat([first, *(logits[prefix:] for logits in rest)]).float()


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference, relative to the spread of the expected values."""
    return float((actual - expected).norm() / (expected - expected.mean()).norm())
