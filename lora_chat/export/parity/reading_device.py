"""Choose the device on which a merged model is read again for its parity check, before anything is loaded."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.config.limits import PARITY_MAX_NEW_TOKENS
from lora_chat.config.plan import BYTES_BY_DTYPE, PrecisionPlan
from lora_chat.errors import OutOfMemoryError, RecipeError
from lora_chat.export.parity.samples import ParitySample
from lora_chat.models.base_model import LocalBase, load_meta_model, read_config
from lora_chat.models.shape import ModelShape, read_shape
from lora_chat.planning.device import USABLE_MEMORY_FRACTION
from lora_chat.planning.parity_memory import ParityWorkload, estimate_parity_activations
from lora_chat.system.console import format_bytes
from lora_chat.system.gpu_memory import free_gpu_bytes, release_gpu_memory
from lora_chat.system.memory_limit import is_out_of_memory
from lora_chat.system.memory_usage import free_memory_bytes

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class MergedSize:
    """Bytes of a merged model and of its parity check."""

    weights: int
    activations: int
    """Activations, logits, keys and values at the peak of the parity check; 0 for an unknown architecture."""

    @property
    def total(self) -> int:
        """Return the bytes at the peak of the parity check."""
        return self.weights + self.activations


def plan_reading(base: LocalBase, precision: PrecisionPlan, samples: Sequence[ParitySample]) -> PrecisionPlan:
    """Return the precision in which a merged model is read again: on the GPU if it fits there, otherwise on the CPU.

    Raises OutOfMemoryError if a GPU run cannot be merged because the model does not fit into main memory either.
    """
    dense = precision.model_copy(update={"mode": "none"})
    if precision.device == "cpu":
        return dense
    release_gpu_memory()
    size, free = _measure_merged(base, precision, samples), free_gpu_bytes()
    if size.total <= USABLE_MEMORY_FRACTION * free:
        _refuse_without_main_memory(size.weights)
        return dense
    _refuse_without_main_memory(size.total)
    logger.info(
        f"The merged model needs {format_bytes(size.total)} and the GPU has {format_bytes(free)} free, "
        "so its parity check will run on the CPU."
    )
    return dense.model_copy(update={"device": "cpu"})


def check_main_memory(base: LocalBase, precision: PrecisionPlan) -> None:
    """Raise OutOfMemoryError if the main memory is too small for the merged model of a GPU run.

    A merge has the model without quantization in main memory. On a CPU, `plan` shows the memory before training.
    """
    if precision.device != "cpu":
        _refuse_without_main_memory(_count_weight_bytes(base, precision))


def _refuse_without_main_memory(needed: int) -> None:
    """Raise OutOfMemoryError if fewer bytes of main memory are free."""
    free = free_memory_bytes()
    if needed > free:
        raise OutOfMemoryError(
            f"The merged model does not fit into main memory: it needs {format_bytes(needed)}, "
            f"{format_bytes(free)} are free (checked before anything is written).\n"
            "Fix: end other programs, add swap, or export the adapter without its base: lora-chat export --to peft."
        )


def read_on_either_device(precision: PrecisionPlan, read: Callable[[PrecisionPlan], T]) -> T:
    """Return the result of reading a model; a GPU that runs out of memory is replaced by the CPU."""
    if precision.device == "cpu":
        return read(precision)
    try:
        return read(precision)
    except Exception as error:
        if not (isinstance(error, OutOfMemoryError) or is_out_of_memory(error)):
            raise
    # After the `except` block nothing refers to the error, whose frames refer to the model.
    release_gpu_memory()
    logger.info("The GPU ran out of memory in the parity check, so it is repeated on the CPU.")
    return read(precision.model_copy(update={"device": "cpu"}))


def _measure_merged(base: LocalBase, precision: PrecisionPlan, samples: Sequence[ParitySample]) -> MergedSize:
    """Return the bytes of a merged model and of its parity check."""
    weights = _count_weight_bytes(base, precision)
    shape: ModelShape
    try:
        shape = read_shape(read_config(base).get_text_config().to_dict(), base.name)
    except RecipeError:  # an architecture without formulas
        import torch

        from lora_chat.planning.dry_run.measure import measure_shape

        shape = measure_shape(load_meta_model(base).to(torch.bfloat16), AdapterSection())
    workload = ParityWorkload(
        longest=max(len(sample.ids) for sample in samples),
        positions=max(len(sample.positions) for sample in samples),
        prompts=len(samples),
        longest_prompt=max(len(sample.prompt) for sample in samples),
        new_tokens=PARITY_MAX_NEW_TOKENS,
    )
    return MergedSize(weights, estimate_parity_activations(shape, workload, BYTES_BY_DTYPE[precision.dtype]))


def _count_weight_bytes(base: LocalBase, precision: PrecisionPlan) -> int:
    """Return the bytes of a base's weights without quantization."""
    num_weights: int = sum(parameter.numel() for parameter in load_meta_model(base).parameters())
    return BYTES_BY_DTYPE[precision.dtype] * num_weights
