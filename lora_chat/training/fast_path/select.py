"""Selection of the fast path: each part is checked on the model, and the stock path replaces what does not pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_chat.models.quantization.cpu_linear import dequantizing_on_the_fly
from lora_chat.models.quantization.dequantize import shared_buffer
from lora_chat.models.quantization.weight_cache import cached_int8_weights
from lora_chat.training.fast_path.attention.interface import register_packed_attention
from lora_chat.training.fast_path.check_gradients import MIN_GRADIENT_COSINE, gradient_cosine
from lora_chat.training.fast_path.check_packing import find_packed_collator
from lora_chat.training.fast_path.fused_lora import fused_lora
from lora_chat.training.fast_path.layers.decoder_layer import fused_layers, unfused_reason
from lora_chat.training.fast_path.lm_head_loss import SupervisedLMHead, find_lm_head
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class FastPath:
    """The parts that replace TRL's and transformers' own on one model."""

    packed_collator: PackedBatchCollator | None = None
    """Collator of packed micro-batches; None leaves padded micro-batches to TRL."""
    head: SupervisedLMHead | None = None
    fused: bool = False
    """Whether fused LoRA layers and decoder layers are used."""
    notes: tuple[str, ...] = ()
    """Messages for the user about parts that are not fast on this model, with the reason."""

    @contextmanager
    def use_fused_layers(self, model: "PeftModel") -> Iterator[None]:
        """Replace the model's layers by fused ones until the block ends."""
        if not self.fused:
            yield
            return
        with cached_int8_weights(model), shared_buffer(model), fused_lora(model), fused_layers(model):
            yield


def find_fast_path(model: "PeftModel", ids: Sequence[int]) -> FastPath:
    """Check the parts on the model with the `ids` of any dialogue, and set the attention for training."""
    stock_attention = model.config._attn_implementation
    try:
        with dequantizing_on_the_fly(model):
            return _check_fast_path(model, ids, stock_attention)
    except (RuntimeError, NotImplementedError) as error:
        if model.device.type == "cpu" or isinstance(error, torch.OutOfMemoryError):
            raise
        # A GPU or a version of PyTorch may lack a kernel.
        model.set_attn_implementation(stock_attention)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        note = f"The fast path does not run on this device ({reason}). Training is slower, with the same result."
        return FastPath(notes=(note,))


def _check_fast_path(model: "PeftModel", ids: Sequence[int], stock_attention: str) -> FastPath:
    """Check packing first, then the LM head and the fused layers together by their gradients."""
    if stock_attention == "sdpa":  # another choice means that the model needs it, for example for soft caps
        model.set_attn_implementation(register_packed_attention())
    collator = find_packed_collator(model, ids, stock_attention)
    if collator is None:
        model.set_attn_implementation(stock_attention)  # padded rows need its mask
        note = (
            "Dialogues are padded, because this model would mix dialogues in one row. "
            "Training is slower, with the same result."
        )
        return FastPath(fused=True, notes=(note,))
    head = find_lm_head(model)
    notes = [] if head else ["The model's own LM head is used, because it is scaled, capped, trained or has a bias."]
    if reason := unfused_reason(model):
        notes.append(f"Decoder layers are not fused ({reason}). Training is slower, with the same result.")
    fused = True
    if head is not None:
        cosine = gradient_cosine(model, ids, collator, head, stock_attention)
        if not cosine >= MIN_GRADIENT_COSINE:
            fused, head = False, None
            notes = [f"Fused layers are off, because their gradients differ from the model's (cosine {cosine:.3f})."]
    return FastPath(collator, head, fused, tuple(notes))
