"""What small models of a base's widths took on this machine -> what the whole base would take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lora_chat.config.limits import PROVEN_DIALOGUES, PROVEN_TOKENS
from lora_chat.data.lengths import DataLengths
from lora_chat.inference.batching import answered_together
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import Target
from lora_chat.planning.phase_memory import load_phase
from lora_chat.planning.phase_time import Durations, Seconds
from lora_chat.planning.training_memory import Setting, holds_values, training_memory
from lora_chat.planning.workload import Workload

_NEAR = 0.75, 1.35
"""So far apart came planned and taken time out on a machine that does other things too (benchmarks/RESULTS.md)."""
_SOON = 0.4
"""Share of the longest replies after which the last one may have ended."""

_STARTED = 8.0
"""Seconds until a command's libraries are imported and a run's dialogues read."""
_DISK = 1e9
"""Bytes a second that a merged model is written and read with."""

_BETWEEN = 0.3
"""Holes as a share of what comes and goes, on a CPU: two small models are too alike to tell it."""
_BESIDE = 150_000_000
"""Bytes that a run holds and a probe does not: its dialogues, their audit, what draws the loss."""


@dataclass(frozen=True)
class Probe:
    """Two models of the same widths, with few and with some layers."""

    layers: tuple[int, int]
    taken: tuple[Mapping[str, float], Mapping[str, float]]
    """Bytes (`rss` in training, `loaded` before) and seconds of each."""
    work: Workload
    """What they were trained with."""
    read: int
    """Tokens of the dialogue they were measured with."""

    def at(self, name: str, layers: int) -> float:
        """A figure at another number of layers, on the line through both."""
        few, some = (taken.get(name, 0.0) for taken in self.taken)
        slope = max(0.0, some - few) / (self.layers[1] - self.layers[0])
        return max(0.0, some + slope * (layers - self.layers[1]))


def calibrate(target: Target, probe: Probe, shape: ModelShape, setting: Setting) -> Target:
    """The target with a context that explains what the larger of the small models took."""
    setting = replace(setting, may_hold=holds_values(shape, setting))
    layers, taken = probe.layers[1], probe.taken[1]["rss"]
    few = replace(shape, layer_count=layers)
    small = training_memory(few, setting, probe.work.largest, padded=probe.work.mask_needed)
    context = taken - small.total - _BETWEEN * small.cut_up + _BESIDE
    loading = None
    if setting.mode != "none":  # weights in 16 bits are read from their file when they are used
        loading = max(0, int(probe.taken[1]["loaded"] - load_phase(few, setting, 0).total + _BESIDE))
    return replace(target, context=max(0, int(context)), loading=loading, fragmentation=_BETWEEN)


def probed_durations(
    probe: Probe, shape: ModelShape, setting: Setting, work: Workload, data: DataLengths, program: float
) -> Durations:
    """Seconds of what `sft` does, at the pace of the small models."""
    layers = shape.layer_count
    position = probe.at("step", layers) / probe.work.step_positions
    # The largest micro-batch is tried before the first step, in the probe its own.
    start = probe.at("start", layers) + position * (work.largest.tokens - probe.work.largest.tokens)
    reading = probe.at("read", layers) / probe.read * float(data.validation.tokens.sum())
    together = answered_together(shape, max(data.prompts, default=1) + data.new_tokens, setting.width)
    batches = -(-len(data.prompts) // together) if data.prompts else 0
    began = probe.at("prefill", layers) * batches
    saying = probe.at("said", layers) * batches * (data.new_tokens - 1)
    train = position * work.step_positions * work.steps
    return {
        "load": _near(program + probe.at("load", layers)),
        "train": _near(train + max(0.0, start)),
        "evaluate": _near(2 * reading),
        "generate": Seconds(
            2 * (began + saying), 2 * _NEAR[0] * (began + _SOON * saying), 2 * _NEAR[1] * (began + saying)
        ),
    }


def merge_seconds(probe: Probe, shape: ModelShape, setting: Setting, data: DataLengths) -> Seconds:
    """Of merging with its proof: the base is loaded twice, held-out dialogues are read thrice and answered twice.

    That is the adapted model, the base as its control, and what was merged (delivery/merge.py).
    """
    layers = shape.layer_count
    rows = min(PROVEN_DIALOGUES, len(data.validation.tokens))
    reading = probe.at("read", layers) / probe.read * float(data.validation.tokens.mean()) * rows
    saying = probe.at("prefill", layers) + PROVEN_TOKENS * probe.at("said", layers)
    likely = _STARTED + 2 * probe.at("load", layers) + 3 * reading + 2 * saying
    likely += 2 * setting.width * shape.weights / _DISK
    return Seconds(likely, 0.5 * likely, 2 * likely)


def _near(seconds: float) -> Seconds:
    return Seconds(seconds, _NEAR[0] * seconds, _NEAR[1] * seconds)


def probe_rows(lengths: Sequence[int], step_rows: int, most_tokens: int, steps: int) -> tuple[int, list[int]]:
    """Rows of a step for a probe, and the lengths of all its rows: as many of every length as the data has.

    A step is as large as the run's, or for a large one as many tokens as asked for: more take just longer. No step is
    like another: as in the run, what each of them frees has to serve for other sizes.
    """
    ordered = sorted(lengths)
    mean = sum(ordered) / len(ordered)
    rows = max(1, min(step_rows, len(ordered), -int(-most_tokens // mean)))
    count = steps * rows
    return rows, [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]
