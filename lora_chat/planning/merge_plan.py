"""A later `merge` of a GPU run: its main memory, and the device on which the merged model is checked."""

from dataclasses import dataclass
from typing import Literal

from lora_chat.config.limits import PARITY_MAX_DIALOGUES, PARITY_MAX_NEW_TOKENS, PARITY_MAX_POSITIONS, PARITY_MAX_TOKENS
from lora_chat.data.lengths import DataLengths
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import USABLE_MEMORY_FRACTION, TargetDevice
from lora_chat.planning.parity_memory import ParityWorkload, estimate_parity_activations
from lora_chat.planning.weight_memory import MemoryConfig


@dataclass(frozen=True)
class MergePlan:
    """The parity check of a merge, which reads the merged model in 16 bits again."""

    device: Literal["cuda", "cpu"]
    """Device of the check: the GPU if the merged model fits there (export/parity/reading_device.py)."""
    needed: int
    """Bytes of the merged model and of the check."""
    free: int
    """Bytes of the GPU that are free for them."""
    activations: int
    """Bytes of the check without the model's weights."""


def plan_merge(
    shape: ModelShape, memory_config: MemoryConfig, data: DataLengths, target: TargetDevice
) -> MergePlan | None:
    """Return the parity check of a later merge; None for a CPU run, whose merge needs no GPU."""
    if target.device != "cuda":
        return None
    longest = min(data.parity.longest, PARITY_MAX_TOKENS)
    workload = ParityWorkload(
        longest=longest,
        positions=min(data.parity.most_supervised, PARITY_MAX_POSITIONS),
        prompts=max(1, min(len(data.parity.tokens), PARITY_MAX_DIALOGUES)),
        longest_prompt=longest,  # at most
        new_tokens=PARITY_MAX_NEW_TOKENS,
    )
    activations = estimate_parity_activations(shape, workload, memory_config.bytes_per_value)
    needed = memory_config.bytes_per_value * shape.weights + activations
    free = target.free - target.context
    return MergePlan("cuda" if needed <= USABLE_MEMORY_FRACTION * free else "cpu", needed, free, activations)
