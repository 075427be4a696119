"""Selection of the fast path: each part is checked on the model, and the stock path replaces what does not pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_chat.errors import first_line
from lora_chat.models.quantization.cpu_linear import dequantizing_on_the_fly
from lora_chat.models.quantization.dequantize import is_int8_on_gpu, shared_buffer
from lora_chat.models.quantization.gpu_weight_cache import find_wrong_product
from lora_chat.models.quantization.weight_cache import cached_int8_weights
from lora_chat.models.sharded_base import is_sharded
from lora_chat.models.sharded_forwards import recover_from_error
from lora_chat.system.gpu_memory import release_unused_memory
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.training.fast_path.attention.interface import register_packed_attention
from lora_chat.training.fast_path.check_gradients import FastPathParts, GradientCheck, cut_long_sample
from lora_chat.training.fast_path.check_packing import find_packed_collator
from lora_chat.training.fast_path.check_windows import PackedLengths, find_wrong_window
from lora_chat.training.fast_path.fused_lora import fused_lora
from lora_chat.training.fast_path.layers.decoder_layer import fused_layers, unfused_reason
from lora_chat.training.fast_path.lm_head_loss import SupervisedLMHead, find_lm_head
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator

if TYPE_CHECKING:
    from peft import PeftModel

_SLOWER = "Training is slower, with the same result."
_UNSUPPORTED = (RuntimeError, NotImplementedError, TypeError, AttributeError, ImportError)
"""Errors by which a GPU, a driver or a version of PyTorch shows that it lacks a kernel, an argument or memory."""


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


def find_fast_path(
    model: "PeftModel", ids: Sequence[int], longest_ids: Sequence[int] = (), lengths: PackedLengths | None = None
) -> FastPath:
    """Check the parts on the model, and set the attention for training.

    `ids` are the tokens of any dialogue, `longest_ids` those of the longest one. Without `lengths` the data has no
    longer rows than these.
    """
    lengths = lengths or PackedLengths.of_dialogues([ids, longest_ids])
    stock_attention = model.config._attn_implementation
    longest_ids = cut_long_sample(longest_ids, model.device)
    gpus = [model.device] if model.device.type == "cuda" else []
    while True:
        try:
            with dequantizing_on_the_fly(model), torch.random.fork_rng(devices=gpus):
                return _check_fast_path(model, ids, longest_ids, lengths, stock_attention)
        except _UNSUPPORTED as error:
            out_of_memory = is_out_of_memory(error)
            if model.device.type == "cpu" and not (out_of_memory and longest_ids):
                raise
            if is_sharded(model):
                if out_of_memory:
                    raise  # the other processes wait for the layers of this pass
                recover_from_error(model)
            reason = first_line(error)
        # Memory can be released only here, because the traceback of the error referred to it.
        model.set_attn_implementation(stock_attention)
        if out_of_memory:
            release_unused_memory()
        if not out_of_memory or not longest_ids:
            note = f"The fast path does not run on this device ({reason}). {_SLOWER}"
            return FastPath(notes=(note,))
        longest_ids = longest_ids[: len(longest_ids) // 2]  # a shorter sample takes less memory, and checks less


def _check_fast_path(
    model: "PeftModel", ids: Sequence[int], longest_ids: Sequence[int], lengths: PackedLengths, stock_attention: str
) -> FastPath:
    """Check packing first, then the LM head and the fused layers together by their gradients.

    If a gradient is wrong, the parts are reduced: first the fused layers, then everything.
    """
    # The stock path of this check multiplies with the same dequantized weights (dequantizing_on_the_fly).
    if wrong_product := find_wrong_product(model, is_int8_on_gpu):
        return FastPath(notes=(f"The fast path is off, because {wrong_product}. {_SLOWER}",))
    if stock_attention == "sdpa":  # another choice means that the model needs it, for example for soft caps
        model.set_attn_implementation(register_packed_attention())
    collator = find_packed_collator(model, ids, stock_attention)
    notes: list[str] = []
    reason = "this model would mix dialogues in one row"
    if collator and (wrong_window := find_wrong_window(model, ids, lengths)):
        collator, reason = None, wrong_window
    if collator is None:
        model.set_attn_implementation(stock_attention)  # padded rows need its mask
        notes.append(f"Dialogues are padded, because {reason}. {_SLOWER}")
    head = find_lm_head(model) if collator else None
    if collator and not head:
        notes.append("The model's own LM head is used, because it is scaled, capped, trained or has a bias.")
    if collator and (reason := unfused_reason(model)):
        notes.append(f"Decoder layers are not fused ({reason}). " + _SLOWER)
    check = GradientCheck(model, ids, longest_ids, stock_attention)
    wrong = check.find_wrong_gradient(FastPathParts(collator, head, fused=True))
    if wrong is None:
        return FastPath(collator, head, True, tuple(notes))
    if collator and check.find_wrong_gradient(FastPathParts(collator, None, fused=False)) is None:
        return FastPath(collator, notes=(f"Fused layers are off, because their {wrong}. {_SLOWER}",))
    model.set_attn_implementation(stock_attention)
    return FastPath(notes=(f"The fast path is off, because its {wrong}. {_SLOWER}",))
