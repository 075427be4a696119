"""Extrapolation from benchmarks of small models with a base's widths to the whole base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lora_chat.config.limits import PARITY_MAX_DIALOGUES, PARITY_MAX_NEW_TOKENS
from lora_chat.data.lengths import DataLengths
from lora_chat.inference.generation import generation_batch_size
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import TargetDevice
from lora_chat.planning.phase_memory import estimate_load_phase
from lora_chat.planning.phase_time import PhaseDurations, TimeEstimate
from lora_chat.planning.training_memory import estimate_training_memory
from lora_chat.planning.weight_memory import MemoryConfig, fits_weight_cache
from lora_chat.planning.workload import Workload

_OBSERVED_TIME_RATIOS = 0.75, 1.35
"""Range of actual / planned time on a machine with other load (benchmarks/RESULTS.md)."""
_EARLY_STOP_FRACTION = 0.4
"""Share of the longest reply's tokens after which all replies may have ended."""
_STARTUP_SECONDS = 8.0
"""Seconds to import a command's libraries and to read a run's dialogues."""
_DISK_BYTES_PER_SECOND = 1e9
"""Bytes per second when a merged model is written and read."""
_CPU_FRAGMENTATION = 0.3
"""Gaps as a share of the bytes that are allocated and freed on a CPU.

It is fixed because two small models are too similar to measure it."""
_EXTRA_RUN_BYTES = 150_000_000
"""Bytes of a run that a benchmark does not need: its dialogues, their audit, the libraries of the loss plot."""


@dataclass(frozen=True)
class MachineBenchmark:
    """Measurements of two models with a base's widths, one with few layers and one with more."""

    layers: tuple[int, int]
    measurements: tuple[Mapping[str, float], Mapping[str, float]]
    """Peak bytes (`rss` in training, `loaded` before) and seconds of each model."""
    workload: Workload
    """Workload of the training of both models."""
    evaluated_tokens: int
    """Tokens of the dialogue whose loss was timed."""

    def extrapolate(self, name: str, layers: int) -> float:
        """Return a figure at another number of layers, on the line through both measurements."""
        few, more = (measurement.get(name, 0.0) for measurement in self.measurements)
        slope = max(0.0, more - few) / (self.layers[1] - self.layers[0])
        return max(0.0, more + slope * (layers - self.layers[1]))


def calibrate(
    target: TargetDevice, benchmark: MachineBenchmark, shape: ModelShape, memory_config: MemoryConfig
) -> TargetDevice:
    """Return the target with the context that explains the measured memory of the larger model."""
    memory_config = replace(memory_config, allow_weight_cache=fits_weight_cache(shape, memory_config))
    # The context is the rest: measured bytes without the estimate for this model and its fragmentation.
    layers, measured_rss = benchmark.layers[1], benchmark.measurements[1]["rss"]
    small_shape = replace(shape, num_layers=layers)
    small_memory = estimate_training_memory(
        small_shape, memory_config, benchmark.workload.largest, padded=benchmark.workload.mask_needed
    )
    context = measured_rss - small_memory.total - _CPU_FRAGMENTATION * small_memory.fragmented_bytes + _EXTRA_RUN_BYTES
    loading = None
    if memory_config.mode != "none":
        # Loading is calibrated only for quantized bases: 16-bit weights are mapped and read when they are used.
        loading = max(
            0,
            int(
                benchmark.measurements[1]["loaded"]
                - estimate_load_phase(small_shape, memory_config, 0).total
                + _EXTRA_RUN_BYTES
            ),
        )
    return replace(target, context=max(0, int(context)), loading=loading, fragmentation=_CPU_FRAGMENTATION)


def durations_from_benchmark(
    benchmark: MachineBenchmark,
    shape: ModelShape,
    memory_config: MemoryConfig,
    workload: Workload,
    data: DataLengths,
    overhead_seconds: float,
    measurements: int = 0,
) -> PhaseDurations:
    """Return the seconds of the phases of `sft`, extrapolated from the benchmark.

    `measurements` is how often the validation set is measured during training.
    """
    layers = shape.num_layers
    # Time of a step is proportional to its positions.
    seconds_per_position = benchmark.extrapolate("step", layers) / benchmark.workload.step_positions
    # Training tries the largest micro-batch before its first step; the benchmark tried its own, smaller one.
    start_seconds = benchmark.extrapolate("start", layers) + seconds_per_position * (
        workload.largest.tokens - benchmark.workload.largest.tokens
    )
    # Evaluation is proportional to tokens, generation to batches of prompts and to tokens of the longest reply.
    seconds_per_token = benchmark.extrapolate("read", layers) / benchmark.evaluated_tokens
    evaluate_seconds = seconds_per_token * float(data.evaluated_tokens.sum())
    validate_seconds = measurements * seconds_per_token * float(data.validation.tokens.sum())
    batch_size = generation_batch_size(
        shape, max(data.prompt_tokens, default=1) + data.max_reply_tokens, memory_config.bytes_per_value
    )
    batches = -(-len(data.prompt_tokens) // batch_size) if data.prompt_tokens else 0
    prefill_seconds = benchmark.extrapolate("prefill", layers) * batches
    decode_seconds = benchmark.extrapolate("said", layers) * batches * (data.max_reply_tokens - 1)
    train = seconds_per_position * workload.step_positions * workload.steps
    # Evaluation and generation run twice: once for the base, once for the adapted model.
    return {
        "load": _with_observed_range(overhead_seconds + benchmark.extrapolate("load", layers)),
        "train": _with_observed_range(train + max(0.0, start_seconds)),
        **({"validate": _with_observed_range(validate_seconds)} if measurements else {}),
        "evaluate": _with_observed_range(2 * evaluate_seconds),
        "generate": TimeEstimate(
            2 * (prefill_seconds + decode_seconds),
            2 * _OBSERVED_TIME_RATIOS[0] * (prefill_seconds + _EARLY_STOP_FRACTION * decode_seconds),
            2 * _OBSERVED_TIME_RATIOS[1] * (prefill_seconds + decode_seconds),
        ),
    }


def estimate_merge_time(
    benchmark: MachineBenchmark, shape: ModelShape, memory_config: MemoryConfig, data: DataLengths
) -> TimeEstimate:
    """Return the seconds of a merge with its parity check (export/merge.py).

    The base is loaded twice. Held-out dialogues are evaluated with the adapted model, with the base as control and with
    the merged model. Replies are generated by the adapted and by the merged model.
    """
    layers = shape.num_layers
    rows = min(PARITY_MAX_DIALOGUES, len(data.parity.tokens))
    evaluate_seconds = (
        benchmark.extrapolate("read", layers) / benchmark.evaluated_tokens * data.parity.mean_tokens * rows
    )
    generate_seconds = benchmark.extrapolate("prefill", layers) + PARITY_MAX_NEW_TOKENS * benchmark.extrapolate(
        "said", layers
    )
    likely_seconds = (
        _STARTUP_SECONDS + 2 * benchmark.extrapolate("load", layers) + 3 * evaluate_seconds + 2 * generate_seconds
    )
    # The merged model is written and read once.
    likely_seconds += 2 * memory_config.bytes_per_value * shape.weights / _DISK_BYTES_PER_SECOND
    return TimeEstimate(likely_seconds, 0.5 * likely_seconds, 2 * likely_seconds)


def _with_observed_range(seconds: float) -> TimeEstimate:
    """Return an estimate with the observed range of actual / planned time."""
    return TimeEstimate(seconds, _OBSERVED_TIME_RATIOS[0] * seconds, _OBSERVED_TIME_RATIOS[1] * seconds)


def choose_benchmark_rows(lengths: Sequence[int], step_rows: int, max_tokens: int, steps: int) -> tuple[int, list[int]]:
    """Return the rows of a benchmark step, and the lengths of all its rows, distributed as in the data.

    A step is as large as the run's, but at most about `max_tokens`, because larger steps only take longer. All steps
    differ, because in a run, too, memory that one step frees must serve tensors of other sizes.
    """
    ordered = sorted(lengths)
    mean = sum(ordered) / len(ordered)
    rows = max(1, min(step_rows, len(ordered), -int(-max_tokens // mean)))
    # Quantiles in the middle of equal parts of the sorted lengths.
    count = steps * rows
    return rows, [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]
