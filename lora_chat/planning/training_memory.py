"""Peak bytes of training one micro-batch, from shapes alone: a closed form, without torch.

Checked in the tests against a dry run of the real PEFT model on the meta device that counts every byte.
"""

from dataclasses import dataclass, replace

from lora_chat.config.limits import MOST_HELD
from lora_chat.models.shape import ModelShape
from lora_chat.planning.layer_memory import MicroBatch, Mode, Pass, Variant, layer_bytes

_TRL_ROWS, _TRL_COLUMNS = 4096, 32768
"""TRL's head makes logits in tiles of so many tokens and words (trl/kernels/chunked_logprob.py)."""
_HEAD_ROWS, _HEAD_LOGITS = 256, 2**25
"""Ours in so many tokens, or logits (training/supervised_head.py)."""
_FP32_STATES = ("gpt2", "phi")
"""Layers whose last norm is a layer norm: autocast leaves its result in fp32."""
_JOINED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Layers that the fast path multiplies with together (training/fused)."""
_OWN_HEAD = ("phi",)
"""Layers whose head has a bias: the supervised head does not cover it."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the moment when they are most, by what they are for."""

    weights: int
    """The frozen base."""
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    """Kept for the backward pass."""
    head: int
    """Logits and what their gradient needs."""
    temporaries: int
    """Of the layer under way."""
    when: str

    @property
    def total(self) -> int:
        """All of it."""
        parts = (self.weights, self.adapter, self.gradients, self.optimizer)
        return sum(parts) + self.activations + self.head + self.temporaries

    @property
    def cut_up(self) -> int:
        """What comes and goes in pieces of many sizes, and leaves holes between them."""
        return self.activations + self.temporaries


@dataclass(frozen=True)
class Setting:
    """How a base is held and trained."""

    mode: Mode
    rank: int
    targets: tuple[str, ...] = ()
    """Names of the linear layers with LoRA; none: all."""
    fast: bool = False
    checkpointed: int = 0
    """Decoder layers that are computed again."""
    double_quantization: bool = True
    moment_bytes: int = 8
    """Of the optimizer, for each trained weight."""
    width: int = 2
    """Bytes of a number that is not quantised."""
    on_cpu: bool = False
    """Where a small base's quantised layers are held with their values beside them (models/frozen_weights.py)."""
    may_hold: bool = True
    """False: not even a small base's."""


def weight_bytes(shape: ModelShape, setting: Setting) -> int:
    """The frozen base as it is held."""
    count, width = shape.linear_weights, setting.width
    outputs = shape.layer_count * sum(linear.outside for linear in shape.linears())
    linear = {
        "none": width * count,
        "8bit": count + 4 * outputs,
        # Half a byte, a scale for 64 weights: a float, or a byte and a float for 256 of these (QLoRA, section 3).
        "4bit": count // 2 + (count // 64 + count // 4096 if setting.double_quantization else count // 16),
    }[setting.mode]
    beside = _held_beside(shape, setting) if setting.on_cpu else 0
    return linear + beside + width * (shape.embedding_weights + shape.small_weights)


def _held_beside(shape: ModelShape, setting: Setting) -> int:
    """On a CPU: the values of quantised layers, or what the fast path copies out of the file that stays mapped."""
    whole = setting.width * shape.linear_weights
    if setting.mode != "none" and setting.may_hold and holds_values(shape, setting):
        return whole
    if setting.mode != "none":
        return _room(shape, setting) if setting.mode == "4bit" else 0
    joined = sum(linear.weights for linear in shape.linears() if linear.name in _JOINED)
    return setting.width * shape.layer_count * joined if setting.fast and setting.width == 2 else 0


def holds_values(shape: ModelShape, setting: Setting) -> bool:
    """Whether a base is small enough for that."""
    return setting.width * shape.linear_weights <= MOST_HELD


def adapter_weights(shape: ModelShape, setting: Setting) -> int:
    """Number of trained weights."""
    chosen = [one for one in shape.linears() if not setting.targets or one.name in setting.targets]
    return shape.layer_count * setting.rank * sum(one.inside + one.outside for one in chosen)


def training_memory(shape: ModelShape, setting: Setting, batch: MicroBatch, *, padded: bool = False) -> Memory:
    """The peak of forward and backward on one micro-batch, after the optimizer's first step."""
    fast = setting.fast and not shape.capped  # whose attention would see the neighbours in one row
    if fast:
        batch = replace(batch, longest=batch.tokens)  # where a mask is needed, it is one for the whole row
    variant: Variant = "fast" if fast else "padded" if padded else "stock"
    mode, room, blocks = setting.mode, 0, 0
    if fast and setting.on_cpu:  # where large pieces have places of their own, for all layers and steps
        mode, blocks = "none", _blocks(shape, setting)
        room = _room(shape, setting) if setting.mode == "8bit" and not _held_beside(shape, setting) else 0
    kept, again = (
        layer_bytes(shape, variant, mode, setting.rank, batch, checkpointed=checkpointed)
        for checkpointed in (False, True)
    )
    head = _head(shape, setting, batch)
    many = min(setting.checkpointed, shape.layer_count)
    trained = adapter_weights(shape, setting)
    moments = [
        _Moment("forward", _held(kept[0], again[0], many, shape), 0, _last(kept, again, many, shape, 0)),
        _Moment("head", _held(kept[0], again[0], many, shape), head.forward, 0),
        _Moment("head, backward", _held(kept[1], again[1], many, shape), head.kept + head.backward, 0),
        _Moment("backward", _held(kept[1], again[1], many, shape), head.after, _last(kept, again, many, shape, 1)),
    ]
    # bitsandbytes' int8 product keeps its input where autograd does not free it: until the whole graph goes.
    stays = again[1].layer - 2 * shape.hidden * batch.tokens if mode == "8bit" else 0
    later, gradient = shape.layer_count - many, 4 * trained // shape.layer_count
    if many:
        held = many * again[1].layer + again[1].rest + later * stays
        moments.append(_Moment("backward", held, 0, again[1].peak, later * gradient))
    first = again[1] if many else kept[1]
    held = first.layer + first.rest + (shape.layer_count - 1) * stays
    moments.append(_Moment("backward", held, 0, first.peak, 4 * trained - gradient))
    top = max(moments, key=lambda moment: moment.total)
    return Memory(
        weights=weight_bytes(shape, setting) + room,
        adapter=4 * trained,
        gradients=top.gradients,
        optimizer=setting.moment_bytes * trained,
        activations=top.held,
        head=top.head + blocks,
        temporaries=top.temporaries,
        when=top.name,
    )


def _room(shape: ModelShape, setting: Setting) -> int:
    """For one layer's values where they are made anew (models/dense_values.py)."""
    return setting.width * max(linear.weights for linear in shape.linears())


def _blocks(shape: ModelShape, setting: Setting) -> int:
    """For logits (training/supervised_head.py)."""
    own = shape.capped or shape.layers in _OWN_HEAD
    return 0 if own else (8 + setting.width) * _HEAD_ROWS * shape.vocabulary


@dataclass(frozen=True)
class _Moment:
    name: str
    held: int
    head: int
    temporaries: int
    gradients: int = 0

    @property
    def total(self) -> int:
        return self.held + self.head + self.temporaries + self.gradients


def _held(kept: Pass, again: Pass, checkpointed: int, shape: ModelShape) -> int:
    rest = kept.rest if not checkpointed else max(kept.rest, again.rest)
    return checkpointed * again.layer + (shape.layer_count - checkpointed) * kept.layer + rest


def _last(kept: tuple[Pass, Pass], again: tuple[Pass, Pass], checkpointed: int, shape: ModelShape, which: int) -> int:
    """Temporaries of the last layer, where the most is held; the first layers are those that are checkpointed."""
    return (again if checkpointed == shape.layer_count else kept)[which].peak


@dataclass(frozen=True)
class _Head:
    forward: int
    kept: int
    backward: int
    after: int
    """While the layers' gradients are made."""


def _head(shape: ModelShape, setting: Setting, batch: MicroBatch) -> _Head:
    s, h, v = batch.supervised, shape.hidden, shape.vocabulary
    if not setting.fast:
        wide = shape.layers in _FP32_STATES
        tile = 2 * min(s, _TRL_ROWS) * (_TRL_COLUMNS + wide * h)
        picked = (4 if wide else 2) * h * s + 16 * s
        return _Head(picked + 36 * s + tile, picked + 12 * s, 4 * h * s + max(tile, (not wide) * 2 * h * s), 0)
    if shape.capped or shape.layers in _OWN_HEAD:
        return _Head(10 * s * v, 4 * s * v, 8 * s * v, 0)
    logits = 0 if setting.on_cpu else (8 + setting.width) * min(s, max(_HEAD_ROWS, _HEAD_LOGITS // v)) * v
    return _Head(4 * h * s + logits, 2 * h * s, 2 * h * s + 2 * h * batch.tokens, 0)
