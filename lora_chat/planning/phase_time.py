"""Seconds of every phase, computed from its operations and the speed of the device."""

from dataclasses import dataclass

from lora_chat.config.plan import TrainingPlan
from lora_chat.data.lengths import DataLengths
from lora_chat.inference.generation import generation_batch_size
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import DeviceSpeed
from lora_chat.planning.weight_memory import MemoryConfig
from lora_chat.planning.workload import Workload

_READ_BYTES_PER_SECOND = 1e9, 0.3e9, 2e9
"""Bytes per second when weights are read from disk: likely, slowest, fastest."""
_ACTIVATION_TRAFFIC_FACTOR = 5
"""Number of times that a layer's activations pass through memory: written, read, and a share of other tensors."""
_STARTUP_SECONDS = 10.0, 5.0, 25.0
"""Seconds to import libraries and read dialogues: likely, lowest, highest."""
_DEQUANTIZE_BYTES_PER_WEIGHT = {"4bit": 2.5, "8bit": 3.0, "none": 0.0}
"""Bytes that pass through memory for each weight that is dequantized to 16 bits."""


@dataclass(frozen=True)
class TimeEstimate:
    """Estimated seconds with their range."""

    likely: float
    low: float
    high: float

    def __add__(self, other: "TimeEstimate") -> "TimeEstimate":
        """Add two estimates."""
        return TimeEstimate(self.likely + other.likely, self.low + other.low, self.high + other.high)


PhaseDurations = dict[str, TimeEstimate]
"""Seconds of each phase of `sft`, by its name."""


def estimate_durations(
    shape: ModelShape,
    memory_config: MemoryConfig,
    plan: TrainingPlan,
    workload: Workload,
    data: DataLengths,
    speed: DeviceSpeed,
    weight_file_bytes: int,
    measurements: int = 0,
) -> PhaseDurations:
    """Return the seconds of loading, training, evaluating and generating, the phases of `sft`.

    `measurements` is how often the validation set is measured during training.
    """
    # Loading reads the weight file once.
    likely, slow, fast = (weight_file_bytes / rate for rate in _READ_BYTES_PER_SECOND)
    load = TimeEstimate(likely, fast, slow) + TimeEstimate(*_STARTUP_SECONDS)
    step = step_seconds(shape, memory_config, plan, workload, speed)
    evaluate_seconds = sum(_row_seconds(shape, memory_config, int(n), speed) for n in data.evaluated_tokens.tolist())
    # During training, validation rows are computed in micro-batches of the size of training.
    tokens = int(data.validation.tokens.sum())
    batches = max(1, -(-tokens // workload.largest.tokens))
    validate_seconds = measurements * batches * _row_seconds(shape, memory_config, -(-tokens // batches), speed)
    # Replies: one forward pass for each token of the longest reply, for each batch of prompts.
    generate_seconds = 0.0
    if data.prompt_tokens:
        max_length = max(data.prompt_tokens) + data.max_reply_tokens
        batch_size = generation_batch_size(shape, max_length, memory_config.bytes_per_value)
        batches = -(-len(data.prompt_tokens) // batch_size)
        generate_seconds = batches * data.max_reply_tokens * token_seconds(shape, memory_config, speed)
    # Evaluation and generation run twice: once for the base, once for the adapted model.
    return {
        "load": load,
        "train": _estimate_from_peak_seconds(step * workload.steps, speed),
        **({"validate": _estimate_from_peak_seconds(validate_seconds, speed)} if measurements else {}),
        "evaluate": _estimate_from_peak_seconds(2 * evaluate_seconds, speed),
        "generate": _estimate_from_peak_seconds(2 * generate_seconds, speed, min_reply_fraction=0.2),
    }


def _estimate_from_peak_seconds(seconds: float, speed: DeviceSpeed, min_reply_fraction: float = 1.0) -> TimeEstimate:
    """Return an estimate from the seconds that the device would take at its peak speed.

    `min_reply_fraction` lowers the low end, because replies may stop before their limit.
    """
    # The likely share of the peak is the geometric mean of both ends.
    likely_fraction = (speed.low * speed.high) ** 0.5
    return TimeEstimate(seconds / likely_fraction, min_reply_fraction * seconds / speed.high, seconds / speed.low)


def step_seconds(
    shape: ModelShape, memory_config: MemoryConfig, plan: TrainingPlan, workload: Workload, speed: DeviceSpeed
) -> float:
    """Return the seconds of one optimizer step at the device's peak: products, memory traffic and launches."""
    recomputed_fraction = min(memory_config.checkpointed, shape.num_layers) / shape.num_layers
    linear = shape.num_linear_weights
    # Frozen linear layers: forward, gradient of the input, and in checkpointed layers forward again.
    passes = 2 + recomputed_fraction
    # Attention per token: two products of 2 operations, over half of the row because it is causal. Backward costs
    # 2.5 times as much, because it recomputes the scores (FlashAttention, arXiv 2205.14135).
    attention = 2 * workload.mean_length * shape.q_size * shape.num_layers * (1 + 2.5 + recomputed_fraction)
    # LoRA: 2 operations per weight and token in forward, and 4 in backward for both gradients.
    lora = 6 * shape.count_adapter_parameters(memory_config.rank, ())
    # 2 operations per weight and token.
    flops = workload.step_positions * (2 * linear * passes + attention + lora)
    # LM head: two products on the fast path, three in TRL's head.
    supervised = workload.step_tokens * workload.supervised_share
    flops += supervised * shape.vocab_size * shape.hidden_size * (4 if memory_config.fast_path else 6)
    # Activations of one token in all layers: states and norms, attention, MLP.
    activation_bytes = (
        memory_config.bytes_per_value
        * shape.num_layers
        * (10 * shape.hidden_size + 2 * shape.q_size + 4 * shape.kv_size + 5 * shape.intermediate_size)
    )
    # Memory traffic: activations, 1.5 times as many on the stock path, which is not fused; and dequantization.
    moved_bytes = (
        workload.step_positions
        * activation_bytes
        * _ACTIVATION_TRAFFIC_FACTOR
        * (1 if memory_config.fast_path else 1.5)
    )
    dequantized_weights = _count_dequantized_weights(shape, memory_config)
    moved_bytes += workload.micro_batches * dequantized_weights * _DEQUANTIZE_BYTES_PER_WEIGHT[memory_config.mode]
    # Small micro-batches are bound by launches; forward is a third of a step's operations.
    launch_seconds = workload.micro_batches * shape.num_layers * speed.launch * (3 + recomputed_fraction) / 3
    return max(flops / speed.flops + moved_bytes / speed.bandwidth, launch_seconds * speed.low)


def _count_dequantized_weights(shape: ModelShape, memory_config: MemoryConfig) -> float:
    """Return the number of weights that one micro-batch dequantizes: none of a cached layer."""
    cached, checkpointed = (min(n, shape.num_layers) for n in (memory_config.cached_layers, memory_config.checkpointed))
    # Forward and backward; the first layers are the cached ones, and also the checkpointed ones, which run again.
    layer_passes = 2 * (shape.num_layers - cached) + max(0, checkpointed - cached)
    return shape.num_linear_weights / shape.num_layers * layer_passes


def _row_seconds(shape: ModelShape, memory_config: MemoryConfig, tokens: int, speed: DeviceSpeed) -> float:
    """Return the seconds of one forward pass of a dialogue at the device's peak."""
    # About half of a dialogue's tokens are supervised and need logits.
    flops = 2 * tokens * (shape.num_linear_weights + shape.vocab_size * shape.hidden_size / 2)
    moved_bytes = shape.num_linear_weights * (
        _DEQUANTIZE_BYTES_PER_WEIGHT[memory_config.mode] or memory_config.bytes_per_value
    )
    return max(flops / speed.flops + moved_bytes / speed.bandwidth, shape.num_layers * speed.launch / 3 * speed.low)


def token_seconds(shape: ModelShape, memory_config: MemoryConfig, speed: DeviceSpeed) -> float:
    """Return the seconds of one more token of every reply: all weights pass through memory once."""
    moved_bytes = shape.num_linear_weights * (
        _DEQUANTIZE_BYTES_PER_WEIGHT[memory_config.mode] or memory_config.bytes_per_value
    )
    moved_bytes += memory_config.bytes_per_value * shape.vocab_size * shape.hidden_size  # the LM head
    return max(moved_bytes / speed.bandwidth, shape.num_layers * speed.launch / 3 * speed.low)
