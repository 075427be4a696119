"""Seconds of every phase, from operations to be done and the speed of the device."""

from dataclasses import dataclass

from lora_chat.config.plan import TrainingPlan
from lora_chat.data.lengths import DataLengths
from lora_chat.inference.batching import generation_batch_size
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import DeviceSpeed
from lora_chat.planning.training_memory import MemoryConfig
from lora_chat.planning.workload import Workload

_READ_BYTES_PER_SECOND = 1e9, 0.3e9, 2e9
"""Bytes a second that weights are read with: likely, slowest, fastest."""
_ACTIVATION_TRAFFIC_FACTOR = 5
"""How often what is kept of a layer passes through memory: written, read, and its neighbours' share."""
_STARTUP_SECONDS = 10.0, 5.0, 25.0
"""Seconds until libraries are imported and dialogues are read: likely, least, most."""
_DEQUANTIZE_BYTES_PER_WEIGHT = {"4bit": 2.5, "8bit": 3.0, "none": 0.0}
"""Bytes that pass through memory for each weight that is made 16 bits wide again."""


@dataclass(frozen=True)
class TimeEstimate:
    """An estimate and what it may as well be."""

    likely: float
    low: float
    high: float

    def __add__(self, other: "TimeEstimate") -> "TimeEstimate":
        return TimeEstimate(self.likely + other.likely, self.low + other.low, self.high + other.high)

    def scaled(self, factor: float) -> "TimeEstimate":
        """So many of it."""
        return TimeEstimate(self.likely * factor, self.low * factor, self.high * factor)


PhaseDurations = dict[str, TimeEstimate]


def estimate_durations(
    shape: ModelShape,
    memory_config: MemoryConfig,
    plan: TrainingPlan,
    workload: Workload,
    data: DataLengths,
    speed: DeviceSpeed,
    weight_file_bytes: int,
) -> PhaseDurations:
    """Of loading, training, evaluating and generating: what `sft` does."""
    likely, slow, fast = (weight_file_bytes / rate for rate in _READ_BYTES_PER_SECOND)
    load = TimeEstimate(likely, fast, slow) + TimeEstimate(*_STARTUP_SECONDS)
    step = step_seconds(shape, memory_config, plan, workload, speed)
    evaluate_seconds = sum(_row_seconds(shape, memory_config, int(n), speed) for n in data.validation.tokens.tolist())
    generate_seconds = 0.0
    if data.prompt_tokens:
        max_length = max(data.prompt_tokens) + data.max_reply_tokens
        batch_size = generation_batch_size(shape, max_length, memory_config.bytes_per_value)
        batches = -(-len(data.prompt_tokens) // batch_size)
        generate_seconds = batches * data.max_reply_tokens * _token_seconds(shape, memory_config, speed)
    # Base and adapted both read and answer everything.
    return {
        "load": load,
        "train": _estimate_from_peak_seconds(step * workload.steps, speed),
        "evaluate": _estimate_from_peak_seconds(2 * evaluate_seconds, speed),
        "generate": _estimate_from_peak_seconds(2 * generate_seconds, speed, min_reply_fraction=0.2),
    }


def _estimate_from_peak_seconds(seconds: float, speed: DeviceSpeed, min_reply_fraction: float = 1.0) -> TimeEstimate:
    """`seconds` are those of the device's peak; replies may stop earlier than their limit."""
    likely_fraction = (speed.low * speed.high) ** 0.5
    return TimeEstimate(seconds / likely_fraction, min_reply_fraction * seconds / speed.high, seconds / speed.low)


def step_seconds(
    shape: ModelShape, memory_config: MemoryConfig, plan: TrainingPlan, workload: Workload, speed: DeviceSpeed
) -> float:
    """Of one optimizer step at the device's peak: products, memory, and starting the operations."""
    recomputed_fraction = min(memory_config.checkpointed, shape.num_layers) / shape.num_layers
    linear = shape.num_linear_weights
    # Forward, gradient of the input, and for checkpointed layers forward again; 2 operations a weight and token.
    passes = 2 + recomputed_fraction
    attention = 2 * workload.mean_length * shape.q_size * shape.num_layers * (1 + 2.5 + recomputed_fraction)
    lora = (
        6
        * memory_config.rank
        * sum(one.in_features + one.out_features for one in shape.linear_layers())
        * shape.num_layers
    )
    flops = workload.step_positions * (2 * linear * passes + attention + lora)
    supervised = workload.step_tokens * workload.supervised_share
    flops += supervised * shape.vocab_size * shape.hidden_size * (4 if memory_config.fast_path else 6)
    activation_bytes = (
        memory_config.bytes_per_value
        * shape.num_layers
        * (10 * shape.hidden_size + 2 * shape.q_size + 4 * shape.kv_size + 5 * shape.intermediate_size)
    )
    moved_bytes = (
        workload.step_positions
        * activation_bytes
        * _ACTIVATION_TRAFFIC_FACTOR
        * (1 if memory_config.fast_path else 1.5)
    )
    moved_bytes += workload.micro_batches * passes * linear * _DEQUANTIZE_BYTES_PER_WEIGHT[memory_config.mode]
    launch_seconds = workload.micro_batches * shape.num_layers * speed.launch * (3 + recomputed_fraction) / 3
    return max(flops / speed.flops + moved_bytes / speed.bandwidth, launch_seconds * speed.low)


def _row_seconds(shape: ModelShape, memory_config: MemoryConfig, tokens: int, speed: DeviceSpeed) -> float:
    """One dialogue, forward alone."""
    flops = 2 * tokens * (shape.num_linear_weights + shape.vocab_size * shape.hidden_size / 2)
    moved = shape.num_linear_weights * (
        _DEQUANTIZE_BYTES_PER_WEIGHT[memory_config.mode] or memory_config.bytes_per_value
    )
    return max(flops / speed.flops + moved / speed.bandwidth, shape.num_layers * speed.launch / 3 * speed.low)


def _token_seconds(shape: ModelShape, memory_config: MemoryConfig, speed: DeviceSpeed) -> float:
    """One more token of every reply: all weights pass through memory once."""
    moved = shape.num_linear_weights * (
        _DEQUANTIZE_BYTES_PER_WEIGHT[memory_config.mode] or memory_config.bytes_per_value
    )
    moved += memory_config.bytes_per_value * shape.vocab_size * shape.hidden_size
    return max(moved / speed.bandwidth, shape.num_layers * speed.launch / 3 * speed.low)
