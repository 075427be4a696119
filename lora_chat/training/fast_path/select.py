"""Which parts of the fast path cover a model, proven on it; where one does not, the stock path and a reason."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_chat.config.plan import TrainingPlan
from lora_chat.models.quantization.cpu_linear import dequantizing_on_the_fly
from lora_chat.models.quantization.dequantize import shared_buffer
from lora_chat.models.quantization.weight_cache import cached_int8_weights
from lora_chat.training.fast_path.attention.interface import register_packed_attention
from lora_chat.training.fast_path.check_gradients import MIN_GRADIENT_COSINE, gradient_cosine
from lora_chat.training.fast_path.check_packing import find_packed_collator
from lora_chat.training.fast_path.fused_lora import fused_lora
from lora_chat.training.fast_path.layers.decoder_layer import fused_layers, unfused_reason
from lora_chat.training.fast_path.lm_head_loss import SupervisedLMHead, find_lm_head
from lora_chat.training.fast_path.packing import StepCollator

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class FastPath:
    """What is used in place of TRL's own."""

    collator: StepCollator | None = None
    """Packs whole optimizer steps; None: TRL pads micro-batches."""
    head: SupervisedLMHead | None = None
    fused: bool = False
    notes: tuple[str, ...] = ()
    """For people: what is not fast on this model, and why."""

    @contextmanager
    def use_fused_layers(self, model: "PeftModel") -> Iterator[None]:
        """The fused layers in place of the model's own, until the block ends."""
        if not self.fused:
            yield
            return
        with cached_int8_weights(model), shared_buffer(model), fused_lora(model), fused_layers(model):
            yield


def find_fast_path(model: "PeftModel", ids: Sequence[int], plan: TrainingPlan) -> FastPath:
    """Try the parts on the model, with the `ids` of any dialogue; sets the attention it is to be trained with."""
    if not plan.fast_path:
        return FastPath()
    stock_attention = model.config._attn_implementation
    try:
        with dequantizing_on_the_fly(model):
            return _check_fast_path(model, ids, plan, stock_attention)
    except (RuntimeError, NotImplementedError) as error:
        if model.device.type == "cpu" or isinstance(error, torch.OutOfMemoryError):
            raise
        # Kernels that a card or a PyTorch lacks.
        model.set_attn_implementation(stock_attention)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return FastPath(notes=(f"The fast path does not run on this device ({reason}). Slower, the same result.",))


def _check_fast_path(model: "PeftModel", ids: Sequence[int], plan: TrainingPlan, stock_attention: str) -> FastPath:
    if stock_attention == "sdpa":  # models with caps of their own chose another
        model.set_attn_implementation(register_packed_attention())
    micro_batch_collator = find_packed_collator(model, ids, stock_attention)
    if micro_batch_collator is None:
        model.set_attn_implementation(stock_attention)  # padded rows need its mask
        note = "Dialogues are padded: in one row, those of this model would see each other. Slower, the same result."
        return FastPath(fused=True, notes=(note,))
    max_rows = None if plan.micro_batch_tokens else plan.micro_batch_size
    collator = StepCollator(micro_batch_collator, plan.micro_batch_tokens, max_rows)
    head = find_lm_head(model)
    notes = [] if head else ["The LM head is the model's own: it is scaled, capped, has a bias or is trained."]
    if reason := unfused_reason(model):
        notes.append(f"Decoder layers are transformers' own ({reason}). Slower, the same result.")
    fused = True
    if head is not None:
        cosine = gradient_cosine(model, ids, micro_batch_collator, head, stock_attention)
        if not cosine >= MIN_GRADIENT_COSINE:
            fused, head = False, None
            notes = [f"Fast layers are off: their gradients are not those of this model (cosine {cosine:.3f})."]
    return FastPath(collator, head, fused, tuple(notes))
