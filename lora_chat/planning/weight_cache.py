"""The number of decoder layers whose dequantized weights fit on a GPU beside training."""

from collections.abc import Sequence

from lora_chat.config.plan import Plan
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import TIGHT_MEMORY_FRACTION, USABLE_MEMORY_FRACTION
from lora_chat.planning.phase_memory import PhaseMemory
from lora_chat.planning.weight_memory import MemoryConfig, layer_weight_bytes

_FILLED_FRACTION = TIGHT_MEMORY_FRACTION / USABLE_MEMORY_FRACTION
"""Share of a plan's memory limit that the cache may fill, so that the error of the estimate cannot make a run fail."""


def count_cached_layers(
    plan: Plan, shape: ModelShape, memory_config: MemoryConfig, phases: Sequence[PhaseMemory], limit: int
) -> int:
    """Return how many layers fit into the memory that no phase of training needs.

    `phases` are those of the plan without a cache. The cache exists only in training, so loading, generation and
    saving do not matter; the measurements of the validation set during training do.
    """
    # Without the fast path, 8-bit layers keep bitsandbytes' products, which round activations too.
    uses_dense_weights = memory_config.mode == "4bit" or (memory_config.mode == "8bit" and memory_config.fast_path)
    if memory_config.on_cpu or memory_config.sharded or not uses_dense_weights or plan.training.memory == "unlimited":
        return 0
    by_name = {phase.name: phase for phase in phases}
    peak = max(by_name[name].total for name in ("train", "validate") if name in by_name)
    room = int(_FILLED_FRACTION * limit) - peak
    return max(0, min(shape.num_layers, room // layer_weight_bytes(shape, memory_config)))
