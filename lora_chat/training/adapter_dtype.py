"""The dtype of the adapter during training and after it, and the state of the model that training changes."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from lora_chat.config.lora_variants import EXTRA_VECTORS
from lora_chat.models.adapter_initialization import convert_to_plain_lora
from lora_chat.processes.copies import copy_from_first
from lora_chat.processes.group import ProcessGroup, current_group
from lora_chat.system.malloc import release_freed_memory
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.training.training_run import TrainingRun

if TYPE_CHECKING:
    from peft import PeftModel


logger = logging.getLogger(__name__)


@contextmanager
def restored_model(run: TrainingRun) -> Iterator[None]:
    """Restore attention and memory allocation on exit; make the adapter plain LoRA of the type that is saved."""
    stock_attention = run.model.config._attn_implementation
    completed = False
    try:
        yield
        completed = True
    finally:
        run.model.set_attn_implementation(stock_attention)
        if run.on_cpu:
            release_freed_memory()
        if completed and run.has_frozen_start:
            conversion_error = convert_to_plain_lora(run.model)
            copy_from_first(_list_trained(run.model), current_group())
            logger.info(
                "The adapter was converted to plain LoRA of twice the rank for the original base; largest relative "
                f"error of an update: {conversion_error:.0e}."
            )
        try:
            if run.bfloat16:
                cast_adapter(run.model, torch.bfloat16)
            cast_biases(run.model)
        except Exception as error:
            # After an out-of-memory error, memory is still taken; the adapter is not used, and the message matters.
            if completed or not is_out_of_memory(error):
                raise
        if completed:
            compare_adapters(run.model, current_group(), "adapters after training")


def compare_adapters(model: "PeftModel", group: ProcessGroup, what: str) -> None:
    """Raise IntegrityError unless all processes have the same trained parameters, by SHA-256."""
    if group.size == 1:
        return
    digest = hashlib.sha256()
    for parameter in _list_trained(model):
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    group.check_equal(what, digest.hexdigest())


def _list_trained(model: "PeftModel") -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def cast_adapter(model: "PeftModel", dtype: torch.dtype) -> None:
    """Cast the LoRA weights in place.

    TRL casts LoRA on a quantized base to bf16, where Adam's second moment cannot change: a step changes it by 0.1 %
    and bf16 has steps of 0.4 %. Therefore LoRA is trained in fp32 and rounded once at the end.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(vector in name for vector in EXTRA_VECTORS):
            parameter.data = parameter.data.to(dtype)


def cast_biases(model: "PeftModel") -> None:
    """Cast the trained biases of the base in place to the type of its other weights, in which a saved one is loaded."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.endswith(".base_layer.bias"):
            parameter.data = parameter.data.to(model.dtype)
