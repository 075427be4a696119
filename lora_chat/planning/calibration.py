"""What small models of a base's widths took on this machine -> what the whole base would take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lora_chat.config.limits import PARITY_MAX_DIALOGUES, PARITY_MAX_NEW_TOKENS
from lora_chat.data.lengths import DataLengths
from lora_chat.inference.batching import generation_batch_size
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import TargetDevice
from lora_chat.planning.phase_memory import estimate_load_phase
from lora_chat.planning.phase_time import PhaseDurations, TimeEstimate
from lora_chat.planning.training_memory import MemoryConfig, estimate_training_memory, fits_weight_cache
from lora_chat.planning.workload import Workload

_OBSERVED_TIME_RATIOS = 0.75, 1.35
"""So far apart came planned and taken time out on a machine that does other things too (benchmarks/RESULTS.md)."""
_EARLY_STOP_FRACTION = 0.4
"""Share of the longest replies after which the last one may have ended."""

_STARTUP_SECONDS = 8.0
"""Seconds until a command's libraries are imported and a run's dialogues read."""
_DISK_BYTES_PER_SECOND = 1e9
"""Bytes a second that a merged model is written and read with."""

_CPU_FRAGMENTATION = 0.3
"""Holes as a share of what comes and goes, on a CPU: two small models are too alike to tell it."""
_EXTRA_RUN_BYTES = 150_000_000
"""Bytes that a run holds and a probe does not: its dialogues, their audit, what draws the loss."""


@dataclass(frozen=True)
class MachineBenchmark:
    """Two models of the same widths, with few and with some layers."""

    layers: tuple[int, int]
    measurements: tuple[Mapping[str, float], Mapping[str, float]]
    """Bytes (`rss` in training, `loaded` before) and seconds of each."""
    workload: Workload
    """What they were trained with."""
    evaluated_tokens: int
    """Tokens of the dialogue they were measured with."""

    def extrapolate(self, name: str, layers: int) -> float:
        """A figure at another number of layers, on the line through both."""
        few, some = (taken.get(name, 0.0) for taken in self.measurements)
        slope = max(0.0, some - few) / (self.layers[1] - self.layers[0])
        return max(0.0, some + slope * (layers - self.layers[1]))


def calibrate(
    target: TargetDevice, benchmark: MachineBenchmark, shape: ModelShape, memory_config: MemoryConfig
) -> TargetDevice:
    """The target with a context that explains what the larger of the small models took."""
    memory_config = replace(memory_config, allow_weight_cache=fits_weight_cache(shape, memory_config))
    layers, measured_rss = benchmark.layers[1], benchmark.measurements[1]["rss"]
    small_shape = replace(shape, num_layers=layers)
    small_memory = estimate_training_memory(
        small_shape, memory_config, benchmark.workload.largest, padded=benchmark.workload.mask_needed
    )
    context = measured_rss - small_memory.total - _CPU_FRAGMENTATION * small_memory.fragmented_bytes + _EXTRA_RUN_BYTES
    loading = None
    if memory_config.mode != "none":  # weights in 16 bits are read from their file when they are used
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
    program: float,
) -> PhaseDurations:
    """Seconds of what `sft` does, at the pace of the small models."""
    layers = shape.num_layers
    seconds_per_position = benchmark.extrapolate("step", layers) / benchmark.workload.step_positions
    # The largest micro-batch is tried before the first step, in the probe its own.
    start_seconds = benchmark.extrapolate("start", layers) + seconds_per_position * (
        workload.largest.tokens - benchmark.workload.largest.tokens
    )
    evaluate_seconds = (
        benchmark.extrapolate("read", layers) / benchmark.evaluated_tokens * float(data.validation.tokens.sum())
    )
    batch_size = generation_batch_size(
        shape, max(data.prompt_tokens, default=1) + data.max_reply_tokens, memory_config.bytes_per_value
    )
    batches = -(-len(data.prompt_tokens) // batch_size) if data.prompt_tokens else 0
    prefill_seconds = benchmark.extrapolate("prefill", layers) * batches
    decode_seconds = benchmark.extrapolate("said", layers) * batches * (data.max_reply_tokens - 1)
    train = seconds_per_position * workload.step_positions * workload.steps
    return {
        "load": _with_observed_range(program + benchmark.extrapolate("load", layers)),
        "train": _with_observed_range(train + max(0.0, start_seconds)),
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
    """Of merging with its proof: the base is loaded twice, held-out dialogues are read thrice and answered twice.

    That is the adapted model, the base as its control, and what was merged (delivery/merge.py).
    """
    layers = shape.num_layers
    rows = min(PARITY_MAX_DIALOGUES, len(data.validation.tokens))
    evaluate_seconds = (
        benchmark.extrapolate("read", layers) / benchmark.evaluated_tokens * float(data.validation.tokens.mean()) * rows
    )
    generate_seconds = benchmark.extrapolate("prefill", layers) + PARITY_MAX_NEW_TOKENS * benchmark.extrapolate(
        "said", layers
    )
    likely_seconds = (
        _STARTUP_SECONDS + 2 * benchmark.extrapolate("load", layers) + 3 * evaluate_seconds + 2 * generate_seconds
    )
    likely_seconds += 2 * memory_config.bytes_per_value * shape.weights / _DISK_BYTES_PER_SECOND
    return TimeEstimate(likely_seconds, 0.5 * likely_seconds, 2 * likely_seconds)


def _with_observed_range(seconds: float) -> TimeEstimate:
    return TimeEstimate(seconds, _OBSERVED_TIME_RATIOS[0] * seconds, _OBSERVED_TIME_RATIOS[1] * seconds)


def choose_benchmark_rows(lengths: Sequence[int], step_rows: int, max_tokens: int, steps: int) -> tuple[int, list[int]]:
    """Rows of a step for a probe, and the lengths of all its rows: as many of every length as the data has.

    A step is as large as the run's, or for a large one as many tokens as asked for: more take just longer. No step is
    like another: as in the run, what each of them frees has to serve for other sizes.
    """
    ordered = sorted(lengths)
    mean = sum(ordered) / len(ordered)
    rows = max(1, min(step_rows, len(ordered), -int(-max_tokens // mean)))
    count = steps * rows
    return rows, [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]
