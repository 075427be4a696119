"""Bytes of the weights of base and adapter, from shapes."""

from dataclasses import dataclass, field

from lora_chat.config.limits import WEIGHT_CACHE_LIMIT_BYTES
from lora_chat.config.stored_quantization import QuantizationMode
from lora_chat.models.shape import ModelShape
from lora_chat.planning.trained_parts import TrainedParts

GATHERED_LAYERS = 2
"""Number of decoder layers of a sharded base that a card has whole: the one in use and the next one (FSDP2)."""


@dataclass(frozen=True)
class MemoryConfig:
    """The settings of a plan on which memory depends."""

    mode: QuantizationMode
    rank: int
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers with LoRA; empty means all."""
    trained_parameters: int | None = None
    """Number of trained weights if the adapted layers differ; None if each decoder layer has the same ones."""
    decomposes_weights: bool = False
    """Whether the adapter's start is computed from the base's weights, one layer after the other."""
    loads_original: bool = False
    """Whether the unquantized base is in main memory meanwhile."""
    fast_path: bool = False
    checkpointed: int = 0
    """Number of decoder layers with gradient checkpointing."""
    double_quantization: bool = True
    moment_bytes: int = 8
    """Bytes of the optimizer's moments, for each trained weight."""
    bytes_per_value: int = 2
    """Bytes of an unquantized weight."""
    on_cpu: bool = False
    """Whether the device is a CPU, where dequantized weights may be cached (models/quantization/weight_cache.py)."""
    allow_weight_cache: bool = True
    """Whether dequantized weights may be cached if they fit the limit."""
    label_smoothing: bool = False
    measures_in_training: bool = False
    """Whether the validation set is measured during training, beside the optimizer's state."""
    cached_layers: int = 0
    """Number of decoder layers whose dequantized weights are cached on a GPU in training, from the first layer on."""
    parts: TrainedParts = field(default_factory=TrainedParts)
    """Modules and rows that are trained beside LoRA."""
    unquantized_weights: int = 0
    """Number of weights in linear layers that a quantized base leaves in 16 bits."""
    processes: int = 1
    """Number of processes that train together; several sum their gradients in a buffer."""
    sharded: bool = False
    """Whether each process has only its part of the base's weights."""


def weight_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the bytes of the frozen base in memory."""
    layers, rest = layer_value_bytes(shape, memory_config), _outer_weight_bytes(shape, memory_config)
    scales = _scale_bytes(shape, memory_config)
    if memory_config.sharded:
        # A part of the decoder layers, and two whole ones, because the next one is on its way. The scales are
        # attributes of the quantized weights, so every card has them.
        parts = -(-layers // memory_config.processes)
        return parts + GATHERED_LAYERS * layers // shape.num_layers + scales + rest
    copy_bytes = weight_copy_bytes(shape, memory_config) if memory_config.on_cpu else 0
    return layers + scales + copy_bytes + rest


def layer_value_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the bytes of the decoder layers' linear weights as they are stored, without the scales."""
    count = shape.num_linear_weights - memory_config.unquantized_weights
    values = {
        "none": memory_config.bytes_per_value * count,
        "8bit": count,  # LLM.int8: one byte for each weight
        "4bit": count // 2,  # NF4: half a byte for each weight
    }[memory_config.mode]
    return values + memory_config.bytes_per_value * memory_config.unquantized_weights


def _outer_weight_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the bytes of embeddings, norms and biases, which are never quantized."""
    return memory_config.bytes_per_value * (shape.num_embedding_weights + shape.num_norm_and_bias_weights)


def _scale_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the bytes of the scales of quantized weights."""
    count = shape.num_linear_weights - memory_config.unquantized_weights
    return {
        "none": 0,
        # LLM.int8: one fp32 scale for each output.
        "8bit": 4 * shape.num_linear_outputs,
        # NF4: one scale for each 64 weights. It is an fp32 number (count / 16), or with double quantization one byte,
        # and one fp32 number for each 256 scales (QLoRA, section 3).
        "4bit": count // 64 + count // 4096 if memory_config.double_quantization else count // 16,
    }[memory_config.mode]


def weight_copy_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the bytes of further copies of weights on a CPU."""
    dense_bytes = memory_config.bytes_per_value * shape.num_linear_weights
    # A small quantized base: the dequantized weights of all layers are cached.
    if memory_config.mode != "none" and memory_config.allow_weight_cache and fits_weight_cache(shape, memory_config):
        return dense_bytes
    # A large one: weights are dequantized on the fly, in 4 bits into one buffer for all layers.
    if memory_config.mode != "none":
        return dequantized_layer_bytes(shape, memory_config) if memory_config.mode == "4bit" else 0
    # Unquantized: the weight file stays mapped, and the fast path copies the projections that it concatenates.
    return (
        memory_config.bytes_per_value * shape.num_concatenated_weights
        if memory_config.fast_path and memory_config.bytes_per_value == 2
        else 0
    )


def cached_weight_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the bytes of the dequantized weights that are cached on a GPU in training."""
    return memory_config.cached_layers * layer_weight_bytes(shape, memory_config)


def layer_weight_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the bytes of the dequantized weights of one decoder layer."""
    return memory_config.bytes_per_value * (shape.num_linear_weights // shape.num_layers)


def fits_weight_cache(shape: ModelShape, memory_config: MemoryConfig) -> bool:
    """Return whether the dequantized weights of a base fit the limit of the weight cache."""
    return memory_config.bytes_per_value * shape.num_linear_weights <= WEIGHT_CACHE_LIMIT_BYTES


def dequantized_layer_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the bytes of the buffer for the largest layer's weights (models/quantization/dequantize.py)."""
    return memory_config.bytes_per_value * shape.max_linear_weights


def count_adapter_parameters(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the number of trained weights: LoRA, and the parts that are trained beside it."""
    return count_lora_parameters(shape, memory_config) + memory_config.parts.count


def count_lora_parameters(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the number of weights of LoRA: rank * (in + out) for each adapted linear layer."""
    if memory_config.trained_parameters is not None:
        return memory_config.trained_parameters
    return shape.count_adapter_parameters(memory_config.rank, memory_config.target_modules)
