"""Peak bytes of training one micro-batch, from shapes alone: a closed form, without torch.

Checked in the tests against a dry run of the real PEFT model on the meta device that counts every byte.
"""

from dataclasses import dataclass, replace

from lora_chat.config.limits import WEIGHT_CACHE_LIMIT_BYTES
from lora_chat.models.architectures import CONCATENATED_PROJECTIONS
from lora_chat.models.shape import ModelShape
from lora_chat.planning.layer_memory import (
    LayerVariant,
    MicroBatch,
    PassMemory,
    QuantizationMode,
    estimate_layer_passes,
)

_TRL_TILE_TOKENS, _TRL_TILE_VOCABULARY = 4096, 32768
"""TRL's head makes logits in tiles of so many tokens and words (trl/kernels/chunked_logprob.py)."""
_HEAD_CHUNK_TOKENS, _HEAD_CHUNK_LOGITS = 256, 2**25
"""Ours in so many tokens, or logits (training/supervised_head.py)."""


@dataclass(frozen=True)
class TrainingMemory:
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
    peak_moment: str

    @property
    def total(self) -> int:
        """All of it."""
        parts = (self.weights, self.adapter, self.gradients, self.optimizer)
        return sum(parts) + self.activations + self.head + self.temporaries

    @property
    def fragmented_bytes(self) -> int:
        """What comes and goes in pieces of many sizes, and leaves holes between them."""
        return self.activations + self.temporaries


@dataclass(frozen=True)
class MemoryConfig:
    """How a base is held and trained."""

    mode: QuantizationMode
    rank: int
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers with LoRA; none: all."""
    fast_path: bool = False
    checkpointed: int = 0
    """Decoder layers that are computed again."""
    double_quantization: bool = True
    moment_bytes: int = 8
    """Of the optimizer, for each trained weight."""
    bytes_per_value: int = 2
    """Bytes of a number that is not quantised."""
    on_cpu: bool = False
    """Where a small base's quantised layers are held with their values beside them (models/frozen_weights.py)."""
    allow_weight_cache: bool = True
    """False: not even a small base's."""


def weight_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """The frozen base as it is held."""
    count, width = shape.num_linear_weights, memory_config.bytes_per_value
    outputs = shape.num_layers * sum(linear.out_features for linear in shape.linear_layers())
    linear = {
        "none": width * count,
        "8bit": count + 4 * outputs,
        # Half a byte, a scale for 64 weights: a float, or a byte and a float for 256 of these (QLoRA, section 3).
        "4bit": count // 2 + (count // 64 + count // 4096 if memory_config.double_quantization else count // 16),
    }[memory_config.mode]
    copy_bytes = _weight_copy_bytes(shape, memory_config) if memory_config.on_cpu else 0
    return linear + copy_bytes + width * (shape.num_embedding_weights + shape.num_norm_and_bias_weights)


def _weight_copy_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """On a CPU: the values of quantised layers, or what the fast path copies out of the file that stays mapped."""
    dense_bytes = memory_config.bytes_per_value * shape.num_linear_weights
    if memory_config.mode != "none" and memory_config.allow_weight_cache and fits_weight_cache(shape, memory_config):
        return dense_bytes
    if memory_config.mode != "none":
        return _dequantized_layer_bytes(shape, memory_config) if memory_config.mode == "4bit" else 0
    fused_weights = sum(linear.weights for linear in shape.linear_layers() if linear.name in CONCATENATED_PROJECTIONS)
    return (
        memory_config.bytes_per_value * shape.num_layers * fused_weights
        if memory_config.fast_path and memory_config.bytes_per_value == 2
        else 0
    )


def fits_weight_cache(shape: ModelShape, memory_config: MemoryConfig) -> bool:
    """Whether a base is small enough for that."""
    return memory_config.bytes_per_value * shape.num_linear_weights <= WEIGHT_CACHE_LIMIT_BYTES


def count_adapter_parameters(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Number of trained weights."""
    adapted_linears = [
        one
        for one in shape.linear_layers()
        if not memory_config.target_modules or one.name in memory_config.target_modules
    ]
    return shape.num_layers * memory_config.rank * sum(one.in_features + one.out_features for one in adapted_linears)


def estimate_training_memory(
    shape: ModelShape, memory_config: MemoryConfig, batch: MicroBatch, *, padded: bool = False
) -> TrainingMemory:
    """The peak of forward and backward on one micro-batch, after the optimizer's first step."""
    fast = memory_config.fast_path and not shape.has_softcapping  # whose attention would see the neighbours in one row
    if fast:
        batch = replace(batch, longest=batch.tokens)  # where a mask is needed, it is one for the whole row
    variant: LayerVariant = "fast" if fast else "padded" if padded else "stock"
    mode, dequantized_bytes, blocks = memory_config.mode, 0, 0
    if fast and memory_config.on_cpu:  # where large pieces have places of their own, for all layers and steps
        mode, blocks = "none", _logits_buffer_bytes(shape, memory_config)
        dequantized_bytes = (
            _dequantized_layer_bytes(shape, memory_config)
            if memory_config.mode == "8bit" and not _weight_copy_bytes(shape, memory_config)
            else 0
        )
    saved, recomputed = (
        estimate_layer_passes(shape, variant, mode, memory_config.rank, batch, checkpointed=checkpointed)
        for checkpointed in (False, True)
    )
    head = _estimate_head_memory(shape, memory_config, batch)
    num_checkpointed = min(memory_config.checkpointed, shape.num_layers)
    trained = count_adapter_parameters(shape, memory_config)
    moments = [
        _MemorySnapshot(
            "forward",
            _activation_bytes(saved[0], recomputed[0], num_checkpointed, shape),
            0,
            _last_layer_temporaries(saved, recomputed, num_checkpointed, shape, 0),
        ),
        _MemorySnapshot("head", _activation_bytes(saved[0], recomputed[0], num_checkpointed, shape), head.forward, 0),
        _MemorySnapshot(
            "head, backward",
            _activation_bytes(saved[1], recomputed[1], num_checkpointed, shape),
            head.saved + head.backward,
            0,
        ),
        _MemorySnapshot(
            "backward",
            _activation_bytes(saved[1], recomputed[1], num_checkpointed, shape),
            head.layer_backward,
            _last_layer_temporaries(saved, recomputed, num_checkpointed, shape, 1),
        ),
    ]
    # bitsandbytes' int8 product keeps its input where autograd does not free it: until the whole graph goes.
    retained_bytes = recomputed[1].layer - 2 * shape.hidden_size * batch.tokens if mode == "8bit" else 0
    num_saved, gradient = shape.num_layers - num_checkpointed, 4 * trained // shape.num_layers
    if num_checkpointed:
        held = num_checkpointed * recomputed[1].layer + recomputed[1].rest + num_saved * retained_bytes
        moments.append(_MemorySnapshot("backward", held, 0, recomputed[1].peak, num_saved * gradient))
    first_layer = recomputed[1] if num_checkpointed else saved[1]
    held = first_layer.layer + first_layer.rest + (shape.num_layers - 1) * retained_bytes
    moments.append(_MemorySnapshot("backward", held, 0, first_layer.peak, 4 * trained - gradient))
    peak = max(moments, key=lambda moment: moment.total)
    return TrainingMemory(
        weights=weight_bytes(shape, memory_config) + dequantized_bytes,
        adapter=4 * trained,
        gradients=peak.gradients,
        optimizer=memory_config.moment_bytes * trained,
        activations=peak.activations,
        head=peak.head + blocks,
        temporaries=peak.temporaries,
        peak_moment=peak.name,
    )


def _dequantized_layer_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """For one layer's values where they are made anew (models/dense_values.py)."""
    return memory_config.bytes_per_value * max(linear.weights for linear in shape.linear_layers())


def _logits_buffer_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """For logits (training/supervised_head.py)."""
    own = shape.has_softcapping or shape.architecture.has_head_bias
    return 0 if own else (8 + memory_config.bytes_per_value) * _HEAD_CHUNK_TOKENS * shape.vocab_size


@dataclass(frozen=True)
class _MemorySnapshot:
    name: str
    activations: int
    head: int
    temporaries: int
    gradients: int = 0

    @property
    def total(self) -> int:
        return self.activations + self.head + self.temporaries + self.gradients


def _activation_bytes(saved: PassMemory, recomputed: PassMemory, checkpointed: int, shape: ModelShape) -> int:
    rest = saved.rest if not checkpointed else max(saved.rest, recomputed.rest)
    return checkpointed * recomputed.layer + (shape.num_layers - checkpointed) * saved.layer + rest


def _last_layer_temporaries(
    saved: tuple[PassMemory, PassMemory],
    recomputed: tuple[PassMemory, PassMemory],
    checkpointed: int,
    shape: ModelShape,
    which: int,
) -> int:
    """Temporaries of the last layer, where the most is held; the first layers are those that are checkpointed."""
    return (recomputed if checkpointed == shape.num_layers else saved)[which].peak


@dataclass(frozen=True)
class _HeadMemory:
    forward: int
    saved: int
    backward: int
    layer_backward: int
    """While the layers' gradients are made."""


def _estimate_head_memory(shape: ModelShape, memory_config: MemoryConfig, batch: MicroBatch) -> _HeadMemory:
    s, h, v = batch.supervised, shape.hidden_size, shape.vocab_size
    if not memory_config.fast_path:
        is_fp32 = shape.architecture.has_layer_norm
        tile_bytes = 2 * min(s, _TRL_TILE_TOKENS) * (_TRL_TILE_VOCABULARY + is_fp32 * h)
        selected_bytes = (4 if is_fp32 else 2) * h * s + 16 * s
        return _HeadMemory(
            selected_bytes + 36 * s + tile_bytes,
            selected_bytes + 12 * s,
            4 * h * s + max(tile_bytes, (not is_fp32) * 2 * h * s),
            0,
        )
    if shape.has_softcapping or shape.architecture.has_head_bias:
        return _HeadMemory(10 * s * v, 4 * s * v, 8 * s * v, 0)
    logits = (
        0
        if memory_config.on_cpu
        else (8 + memory_config.bytes_per_value) * min(s, max(_HEAD_CHUNK_TOKENS, _HEAD_CHUNK_LOGITS // v)) * v
    )
    return _HeadMemory(4 * h * s + logits, 2 * h * s, 2 * h * s + 2 * h * batch.tokens, 0)
