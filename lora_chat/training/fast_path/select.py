"""Which parts of the fast path cover a model, proven on it; where one does not, the stock path and a reason."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_chat.config.plan import TrainingPlan
from lora_chat.models.quantization.cpu_linear import dense_products
from lora_chat.models.quantization.dequantize import shared_room
from lora_chat.models.quantization.weight_cache import held_int8
from lora_chat.training.fast_path.attention.interface import register_segment_attention
from lora_chat.training.fast_path.check_gradients import SMALLEST_COSINE, gradient_cosine
from lora_chat.training.fast_path.check_packing import find_flat_rows
from lora_chat.training.fast_path.fused_lora import fused_lora
from lora_chat.training.fast_path.layers.decoder_layer import fused_layers, why_not_fused
from lora_chat.training.fast_path.lm_head_loss import SupervisedHead, find_head
from lora_chat.training.fast_path.packing import StepCollator

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class FastPath:
    """What is used in place of TRL's own."""

    collator: StepCollator | None = None
    """Packs whole optimizer steps; None: TRL pads micro-batches."""
    head: SupervisedHead | None = None
    fused: bool = False
    notes: tuple[str, ...] = ()
    """For people: what is not fast on this model, and why."""

    @contextmanager
    def layers(self, model: "PeftModel") -> Iterator[None]:
        """The fused layers in place of the model's own, until the block ends."""
        if not self.fused:
            yield
            return
        with held_int8(model), shared_room(model), fused_lora(model), fused_layers(model):
            yield


def find_fast_path(model: "PeftModel", ids: Sequence[int], plan: TrainingPlan) -> FastPath:
    """Try the parts on the model, with the `ids` of any dialogue; sets the attention it is to be trained with."""
    if not plan.fast_path:
        return FastPath()
    stock_attention = model.config._attn_implementation
    try:
        with dense_products(model):
            return _try_parts(model, ids, plan, stock_attention)
    except (RuntimeError, NotImplementedError) as error:
        if model.device.type == "cpu" or isinstance(error, torch.OutOfMemoryError):
            raise
        # Kernels that a card or a PyTorch lacks.
        model.set_attn_implementation(stock_attention)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return FastPath(notes=(f"The fast path does not run on this device ({reason}). Slower, the same result.",))


def _try_parts(model: "PeftModel", ids: Sequence[int], plan: TrainingPlan, stock_attention: str) -> FastPath:
    if stock_attention == "sdpa":  # models with caps of their own chose another
        model.set_attn_implementation(register_segment_attention())
    flat = find_flat_rows(model, ids, stock_attention)
    if flat is None:
        model.set_attn_implementation(stock_attention)  # padded rows need its mask
        note = "Dialogues are padded: in one row, those of this model would see each other. Slower, the same result."
        return FastPath(fused=True, notes=(note,))
    rows = None if plan.micro_batch_tokens else plan.micro_batch_size
    collator = StepCollator(flat, plan.micro_batch_tokens, rows)
    head = find_head(model)
    notes = [] if head else ["The LM head is the model's own: it is scaled, capped, has a bias or is trained."]
    if reason := why_not_fused(model):
        notes.append(f"Decoder layers are transformers' own ({reason}). Slower, the same result.")
    fused = True
    if head is not None:
        cosine = gradient_cosine(model, ids, flat, head, stock_attention)
        if not cosine >= SMALLEST_COSINE:
            fused, head = False, None
            notes = [f"Fast layers are off: their gradients are not those of this model (cosine {cosine:.3f})."]
    return FastPath(collator, head, fused, tuple(notes))
