"""Peak bytes of training one micro-batch, computed from shapes without torch.

The tests compare this closed form with a dry run of the real PEFT model on the meta device that counts every byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_chat.config.limits import INT8_CHUNK_BYTES, LM_HEAD_CPU_BUFFER_ROWS, LM_HEAD_GPU_BUFFER_LOGITS
from lora_chat.models.shape import ModelShape
from lora_chat.planning.layer_memory import LayerVariant, MicroBatch, PassMemory, estimate_layer_passes
from lora_chat.planning.trained_parts import TrainedParts
from lora_chat.planning.weight_memory import (
    MemoryConfig,
    cached_weight_bytes,
    count_adapter_parameters,
    count_lora_parameters,
    dequantized_layer_bytes,
    weight_bytes,
    weight_copy_bytes,
)

_FP32_BYTES = 4
TRL_TILE_TOKENS, TRL_TILE_VOCABULARY = 4096, 32768
"""Tokens and words of one tile of logits in TRL's head (trl/kernels/chunked_logprob.py)."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes at the peak of training, by purpose."""

    weights: int
    """Bytes of the frozen base and of its cached dequantized weights."""
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    """Bytes saved for the backward pass."""
    head: int
    """Bytes of logits and of the tensors that their gradient needs."""
    temporaries: int
    """Bytes of the current layer's temporary tensors."""
    peak_moment: str

    @property
    def total(self) -> int:
        """Return the bytes of all parts."""
        parts = (self.weights, self.adapter, self.gradients, self.optimizer)
        return sum(parts) + self.activations + self.head + self.temporaries

    @property
    def fragmented_bytes(self) -> int:
        """Return the bytes that are allocated and freed in blocks of many sizes, which leaves gaps between blocks."""
        return self.activations + self.temporaries


@dataclass(frozen=True)
class _MemorySnapshot:
    """Bytes at one moment of a step, beside weights, adapter and optimizer."""

    name: str
    activations: int
    head: int
    temporaries: int
    gradients: int = 0

    @property
    def total(self) -> int:
        """Return the bytes of all parts."""
        return self.activations + self.head + self.temporaries + self.gradients


def estimate_training_memory(
    shape: ModelShape, memory_config: MemoryConfig, batch: MicroBatch, *, padded: bool = False
) -> TrainingMemory:
    """Return the peak of forward and backward on one micro-batch, after the optimizer's first step."""
    # Soft-capped attention has no packed kernel and no fused layers.
    fast = memory_config.fast_path and not shape.has_softcapping
    if fast or (memory_config.fast_path and not memory_config.on_cpu):
        # If a packed batch needs a mask, the mask covers the whole batch, and so do the scores of soft-capped
        # attention. (On a CPU, the machine benchmark measures them.)
        batch = replace(batch, longest=batch.tokens)
    variant: LayerVariant = "fast" if fast else "padded" if padded else "stock"
    mode, dequantized_bytes, buffer_bytes, chunk_bytes = memory_config.mode, 0, 0, 0
    if fast and memory_config.on_cpu:
        # On a CPU, large tensors have fixed buffers that all layers and steps share.
        mode, buffer_bytes = "none", _logits_buffer_bytes(shape, memory_config)
        dequantized_bytes = (
            dequantized_layer_bytes(shape, memory_config)
            if memory_config.mode == "8bit" and not weight_copy_bytes(shape, memory_config)
            else 0
        )
    elif fast and mode == "8bit":
        # On a GPU, 8-bit weights are dequantized for each product like 4-bit ones, through fp32 chunks.
        mode, chunk_bytes = "4bit", min(INT8_CHUNK_BYTES, 8 * shape.max_linear_weights)
    head = _estimate_head_memory(shape, memory_config, batch)
    # Both passes of a layer that saves its activations, and of a checkpointed one.
    saved, recomputed = (
        estimate_layer_passes(shape, variant, mode, memory_config.rank, batch, checkpointed=checkpointed)
        for checkpointed in (False, True)
    )
    trained, lora = count_adapter_parameters(shape, memory_config), count_lora_parameters(shape, memory_config)
    num_checkpointed = min(memory_config.checkpointed, shape.num_layers)
    # bitsandbytes' int8 product keeps its input until autograd frees the whole graph.
    retained_bytes = recomputed[1].layer - 2 * shape.hidden_size * batch.tokens if mode == "8bit" else 0
    snapshots = [
        *_last_layer_snapshots(shape.num_layers, num_checkpointed, saved, recomputed, head),
        *_first_layer_snapshots(shape.num_layers, num_checkpointed, saved[1], recomputed[1], retained_bytes, lora),
    ]
    snapshots = _add_trained_parts(snapshots, memory_config.parts, memory_config.bytes_per_value)
    peak = max(snapshots, key=lambda snapshot: snapshot.total)
    return TrainingMemory(
        weights=weight_bytes(shape, memory_config) + cached_weight_bytes(shape, memory_config) + dequantized_bytes,
        adapter=4 * trained,  # fp32
        gradients=peak.gradients,
        optimizer=memory_config.moment_bytes * trained,
        activations=peak.activations,
        head=peak.head + buffer_bytes,
        temporaries=peak.temporaries + chunk_bytes,
        peak_moment=peak.name,
    )


def _add_trained_parts(
    snapshots: Sequence[_MemorySnapshot], parts: TrainedParts, bytes_per_value: int
) -> list[_MemorySnapshot]:
    """Add copies and gradients of trained modules and rows to the moments, and the embedding's backward at the end."""
    if not parts.count:
        return list(snapshots)
    copy_bytes, gradient_bytes = parts.head_bytes(bytes_per_value), parts.head_gradient_bytes
    # The gradient of the whole head in its own type, beside the copy.
    in_head = {"head": copy_bytes, "head, backward": 2 * copy_bytes}
    added = [
        replace(
            snapshot,
            head=snapshot.head + in_head.get(snapshot.name, copy_bytes if "backward" in snapshot.name else 0),
            gradients=snapshot.gradients + ("backward" in snapshot.name) * gradient_bytes,
        )
        for snapshot in snapshots
    ]
    # A tied matrix has one gradient, to which the embedding's is added.
    own_bytes = 0 if parts.is_tied else _FP32_BYTES * parts.matrix_weights * parts.has_whole_embedding
    embedding = _MemorySnapshot(
        "embedding, backward", 0, copy_bytes, parts.embedding_bytes(bytes_per_value), added[-1].gradients + own_bytes
    )
    return [*added, embedding]


_Passes = tuple[PassMemory, PassMemory]
"""Memory of the forward and of the backward pass."""


def _last_layer_snapshots(
    num_layers: int, num_checkpointed: int, saved: _Passes, recomputed: _Passes, head: "_HeadMemory"
) -> list[_MemorySnapshot]:
    """Return the moments around the head and in the last layer, where all layers have saved their activations."""
    # The first layers are the checkpointed ones, so the last one is checkpointed only if all are.
    last_layer = recomputed if num_checkpointed == num_layers else saved
    forward, backward = (_activation_bytes(num_layers, num_checkpointed, saved[i], recomputed[i]) for i in range(2))
    return [
        _MemorySnapshot("forward", forward, 0, last_layer[0].peak),
        _MemorySnapshot("head", forward, head.forward, 0),
        _MemorySnapshot("head, backward", backward, head.saved + head.backward, 0),
        _MemorySnapshot("backward", backward, head.layer_backward, last_layer[1].peak),
    ]


def _first_layer_snapshots(
    num_layers: int, num_checkpointed: int, saved: PassMemory, recomputed: PassMemory, retained_bytes: int, trained: int
) -> list[_MemorySnapshot]:
    """Return the moments late in the backward pass, where the gradients of most layers exist.

    `saved` and `recomputed` are backward passes. `retained_bytes` are those that a finished layer keeps.
    """
    num_saved, gradient_bytes = num_layers - num_checkpointed, 4 * trained // num_layers  # fp32, of one layer
    snapshots = []
    if num_checkpointed:
        # The last checkpointed layer is recomputed: all layers after it have their gradients.
        activations = num_checkpointed * recomputed.layer + recomputed.rest + num_saved * retained_bytes
        snapshots.append(_MemorySnapshot("backward", activations, 0, recomputed.peak, num_saved * gradient_bytes))
    # The first layer: all other layers have their gradients.
    first_layer = recomputed if num_checkpointed else saved
    activations = first_layer.layer + first_layer.rest + (num_layers - 1) * retained_bytes
    return [
        *snapshots,
        _MemorySnapshot("backward", activations, 0, first_layer.peak, 4 * trained - gradient_bytes),
    ]


def _activation_bytes(num_layers: int, num_checkpointed: int, saved: PassMemory, recomputed: PassMemory) -> int:
    """Return the bytes that all layers and the rest of the model save in one pass."""
    rest = saved.rest if not num_checkpointed else max(saved.rest, recomputed.rest)
    return num_checkpointed * recomputed.layer + (num_layers - num_checkpointed) * saved.layer + rest


def _logits_buffer_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the bytes of the logits buffers on a CPU (training/fast_path/lm_head_loss.py)."""
    if not _has_fused_head(shape) or memory_config.parts.trains_head:
        return 0
    # Three buffers: the logits, and twice fp32 for the logits and their log-probabilities.
    return (8 + memory_config.bytes_per_value) * LM_HEAD_CPU_BUFFER_ROWS * shape.vocab_size


def _has_fused_head(shape: ModelShape) -> bool:
    """Return whether the fast path's LM head loss supports a base: a plain product without bias or soft cap."""
    return not (shape.has_softcapping or shape.architecture.has_head_bias)


@dataclass(frozen=True)
class _HeadMemory:
    """Bytes of the LM head and the loss at the moments of a step."""

    forward: int
    saved: int
    """Bytes kept from forward until the head's backward."""
    backward: int
    """Further bytes in the head's backward."""
    layer_backward: int
    """Bytes kept while the layers compute their gradients."""


def _estimate_head_memory(shape: ModelShape, memory_config: MemoryConfig, batch: MicroBatch) -> _HeadMemory:
    """Return the bytes of TRL's head, of transformers' logits, or of the fast path's head."""
    s, h, v = batch.supervised, shape.hidden_size, shape.vocab_size
    if memory_config.label_smoothing and not memory_config.fast_path:
        s = batch.tokens  # the stock path computes all logits of each position that is supervised in any row
    elif not memory_config.fast_path:
        # Autocast keeps the output of a final layer norm in fp32.
        is_fp32 = shape.architecture.has_layer_norm
        # One bf16 tile of logits; fp32 states are cast to bf16 for it.
        tile_bytes = 2 * min(s, TRL_TILE_TOKENS) * (TRL_TILE_VOCABULARY + is_fp32 * h)
        # States of the supervised positions, and their indices (two int64).
        selected_bytes = (4 if is_fp32 else 2) * h * s + 16 * s
        return _HeadMemory(
            # Nine fp32 figures for each position, of which three are kept.
            forward=selected_bytes + 36 * s + tile_bytes,
            saved=selected_bytes + 12 * s,
            # The fp32 gradient of the states, beside a tile or its bf16 copy.
            backward=4 * h * s + max(tile_bytes, (not is_fp32) * 2 * h * s),
            layer_backward=0,
        )
    has_fused_head = _has_fused_head(shape) and not memory_config.parts.trains_head
    if not (memory_config.fast_path and has_fused_head):
        # Logits in bf16 and fp32, and their log-softmax; its fp32 result is kept; two fp32 gradients.
        return _HeadMemory(forward=10 * s * v, saved=4 * s * v, backward=8 * s * v, layer_backward=0)
    # The logits of one buffer, as in `_logits_buffer_bytes`; a CPU counts its buffers there.
    rows = min(s, max(LM_HEAD_CPU_BUFFER_ROWS, LM_HEAD_GPU_BUFFER_LOGITS // v))
    logits = 0 if memory_config.on_cpu else (8 + memory_config.bytes_per_value) * rows * v
    return _HeadMemory(
        # The states of supervised positions and their gradient, computed in the forward pass; the latter is kept.
        forward=4 * h * s + logits,
        saved=2 * h * s,
        # The gradient, scaled, and scattered to all positions.
        backward=2 * h * s + 2 * h * batch.tokens,
        layer_backward=0,
    )
