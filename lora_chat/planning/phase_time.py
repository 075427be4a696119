"""Seconds of every phase, from operations to be done and the speed of the device."""

from dataclasses import dataclass

from lora_chat.config.plan import TrainingPlan
from lora_chat.data.lengths import DataLengths
from lora_chat.inference.batching import answered_together
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import Speed
from lora_chat.planning.training_memory import Setting
from lora_chat.planning.workload import Workload

_DISK = 1e9, 0.3e9, 2e9
"""Bytes a second that weights are read with: likely, slowest, fastest."""
_TOUCHED = 5
"""How often what is kept of a layer passes through memory: written, read, and its neighbours' share."""
_PROGRAM = 10.0, 5.0, 25.0
"""Seconds until libraries are imported and dialogues are read: likely, least, most."""
_UNPACKED = {"4bit": 2.5, "8bit": 3.0, "none": 0.0}
"""Bytes that pass through memory for each weight that is made 16 bits wide again."""


@dataclass(frozen=True)
class Seconds:
    """An estimate and what it may as well be."""

    likely: float
    low: float
    high: float

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.likely + other.likely, self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Seconds":
        """So many of it."""
        return Seconds(self.likely * factor, self.low * factor, self.high * factor)


Durations = dict[str, Seconds]


def make_durations(
    shape: ModelShape,
    setting: Setting,
    plan: TrainingPlan,
    work: Workload,
    data: DataLengths,
    speed: Speed,
    weight_file_bytes: int,
) -> Durations:
    """Of loading, training, evaluating and generating: what `sft` does."""
    likely, slow, fast = (weight_file_bytes / rate for rate in _DISK)
    load = Seconds(likely, fast, slow) + Seconds(*_PROGRAM)
    step = step_seconds(shape, setting, plan, work, speed)
    reading = sum(_row_seconds(shape, setting, int(n), speed) for n in data.validation.tokens.tolist())
    saying = 0.0
    if data.prompts:
        most = max(data.prompts) + data.new_tokens
        together = answered_together(shape, most, setting.width)
        batches = -(-len(data.prompts) // together)
        saying = batches * data.new_tokens * _token_seconds(shape, setting, speed)
    # Base and adapted both read and answer everything.
    return {
        "load": load,
        "train": _within(step * work.steps, speed),
        "evaluate": _within(2 * reading, speed),
        "generate": _within(2 * saying, speed, least=0.2),
    }


def _within(seconds: float, speed: Speed, least: float = 1.0) -> Seconds:
    """`seconds` are those of the device's peak; replies may stop earlier than their limit."""
    middle = (speed.low * speed.high) ** 0.5
    return Seconds(seconds / middle, least * seconds / speed.high, seconds / speed.low)


def step_seconds(shape: ModelShape, setting: Setting, plan: TrainingPlan, work: Workload, speed: Speed) -> float:
    """Of one optimizer step at the device's peak: products, memory, and starting the operations."""
    again = min(setting.checkpointed, shape.layer_count) / shape.layer_count
    linear = shape.linear_weights
    # Forward, gradient of the input, and for checkpointed layers forward again; 2 operations a weight and token.
    passes = 2 + again
    attention = 2 * work.mean_length * shape.query * shape.layer_count * (1 + 2.5 + again)
    lora = 6 * setting.rank * sum(one.inside + one.outside for one in shape.linears()) * shape.layer_count
    flops = work.step_positions * (2 * linear * passes + attention + lora)
    supervised = work.step_tokens * work.supervised_share
    flops += supervised * shape.vocabulary * shape.hidden * (4 if setting.fast else 6)
    kept = setting.width * shape.layer_count * (10 * shape.hidden + 2 * shape.query + 4 * shape.key + 5 * shape.inner)
    moved = work.step_positions * kept * _TOUCHED * (1 if setting.fast else 1.5)
    moved += work.micro_batches * passes * linear * _UNPACKED[setting.mode]
    started = work.micro_batches * shape.layer_count * speed.launch * (3 + again) / 3
    return max(flops / speed.flops + moved / speed.bandwidth, started * speed.low)


def _row_seconds(shape: ModelShape, setting: Setting, tokens: int, speed: Speed) -> float:
    """One dialogue, forward alone."""
    flops = 2 * tokens * (shape.linear_weights + shape.vocabulary * shape.hidden / 2)
    moved = shape.linear_weights * (_UNPACKED[setting.mode] or setting.width)
    return max(flops / speed.flops + moved / speed.bandwidth, shape.layer_count * speed.launch / 3 * speed.low)


def _token_seconds(shape: ModelShape, setting: Setting, speed: Speed) -> float:
    """One more token of every reply: all weights pass through memory once."""
    moved = shape.linear_weights * (_UNPACKED[setting.mode] or setting.width)
    moved += setting.width * shape.vocabulary * shape.hidden
    return max(moved / speed.bandwidth, shape.layer_count * speed.launch / 3 * speed.low)
