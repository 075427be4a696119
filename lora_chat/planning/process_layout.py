"""Several processes that train together: how many, over which link, and whether the base is sharded."""

from dataclasses import dataclass

from lora_chat.config.plan import Plan
from lora_chat.models.shape import ModelShape
from lora_chat.planning.card_links import CPU_LINK, CardLink
from lora_chat.planning.weight_memory import MemoryConfig, layer_value_bytes


@dataclass(frozen=True)
class ProcessLayout:
    """The processes of a run, each with one card, or with its part of a CPU."""

    count: int = 1
    link: CardLink = CPU_LINK
    sharded: bool = False
    """Whether each card has a part of the base's weights, instead of all."""


ONE_PROCESS = ProcessLayout()
TRAINING_PASSES = 2
"""Number of passes through all layers in which a micro-batch needs their weights: forward and backward."""


def can_shard(plan: Plan) -> bool:
    """Return whether the base of a plan can be sharded (pipeline/shard_choice.py)."""
    return plan.precision.mode != "8bit" and plan.adapter.stack is None


def gather_seconds(shape: ModelShape, memory_config: MemoryConfig, layout: ProcessLayout) -> float:
    """Return the seconds in which a pass through all layers gathers a sharded base; 0 if each process has all of it.

    Forward and backward are a pass each. The time does not overlap with computation here.
    """
    if not layout.sharded:
        return 0.0
    layer_bytes = layer_value_bytes(shape, memory_config) // shape.num_layers
    return shape.num_layers * layout.link.all_gather_seconds(layer_bytes, layout.count)
