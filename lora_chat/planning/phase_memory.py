"""Peak bytes of every phase of a run, from shapes alone."""

from dataclasses import dataclass, replace

from lora_chat.data.lengths import DataLengths
from lora_chat.inference.batching import generation_batch_size, kv_cache_bytes_per_token
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import TargetDevice
from lora_chat.planning.layer_memory import MicroBatch, estimate_layer_passes
from lora_chat.planning.training_memory import MemoryConfig, estimate_training_memory, weight_bytes
from lora_chat.planning.workload import Workload

MAX_EVALUATION_LOGITS = 2**25
"""Logits that are made at once where a loss is only measured (evaluation/scores.py)."""
_EXTRA_LOADED_MATRICES = {"none": 0, "4bit": 1, "8bit": 2}
"""Matrices in 16 bits beside those that are quantised: transformers' loader quantises one after the other, and LLM.int8
keeps what it came from (core_model_loading.py, integrations/bitsandbytes.py, transformers 5.23)."""
_CUBLAS_WORKSPACE_BYTES = 32 * 2**20
"""cuBLAS's, the larger of the usual two (PyTorch's CUBLAS_WORKSPACE_CONFIG)."""
_MERGE_OVERHEAD_BYTES = 400_000_000
"""What a merge takes above the model and the program (benchmarks/merge_memory.py)."""
_PROCESS_BYTES = 560_000_000
"""Main memory of Python with all libraries imported, torch 2.13.0 for the CPU."""


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes at the moment when a phase needs the most, by what they are for."""

    name: str
    weights: int = 0
    adapter: int = 0
    optimizer: int = 0
    """Its moments, and the gradients that it reads."""
    activations: int = 0
    """And keys and values of what is being said."""
    head: int = 0
    workspace: int = 0
    """Of operations under way, and what lies between blocks."""
    context: int = 0
    in_main_memory: bool = False
    """Beside a GPU: takes nothing of the card."""

    @property
    def parts(self) -> dict[str, int]:
        """By name, in the order of the table."""
        names = ("weights", "adapter", "optimizer", "activations", "head", "workspace", "context")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    @property
    def largest_part(self) -> str:
        """What dominates."""
        return max(self.parts, key=lambda name: self.parts[name])


def estimate_phases(
    shape: ModelShape, memory_config: MemoryConfig, workload: Workload, data: DataLengths, target: TargetDevice
) -> tuple[PhaseMemory, ...]:
    """Of loading, training, evaluating, saving, merging, exporting and generating."""
    weights, context = weight_bytes(shape, memory_config), target.context
    train = estimate_train_phase(shape, memory_config, workload.largest, target, padded=workload.mask_needed)
    adapter = train.adapter
    resident = PhaseMemory("", weights=weights, adapter=adapter, context=context)
    gpu = target.device == "cuda"
    merged_bytes = memory_config.bytes_per_value * shape.weights
    merge_phase = PhaseMemory(
        "merge",
        weights=merged_bytes,
        adapter=adapter,
        workspace=_MERGE_OVERHEAD_BYTES,
        context=_PROCESS_BYTES if gpu else context,
        in_main_memory=gpu,
    )
    return (
        estimate_load_phase(shape, memory_config, context if target.loading is None else target.loading),
        train,
        _estimate_evaluate_phase(shape, memory_config, data, resident),
        _estimate_generate_phase(shape, memory_config, data, resident),
        replace(resident, name="save", workspace=adapter // 2),
        merge_phase,
        replace(merge_phase, name="export"),
    )


def estimate_load_phase(shape: ModelShape, memory_config: MemoryConfig, context: int) -> PhaseMemory:
    """Of loading and quantising the base."""
    weights = weight_bytes(shape, memory_config)
    dense_matrix_bytes = (
        memory_config.bytes_per_value
        * max(linear.weights for linear in shape.linear_layers())
        * _EXTRA_LOADED_MATRICES[memory_config.mode]
    )
    if memory_config.on_cpu and memory_config.mode != "none":  # the file is mapped until all is quantised
        dense_matrix_bytes += max(
            0,
            memory_config.bytes_per_value * shape.num_linear_weights
            - (weights - _uncached_weight_bytes(shape, memory_config)),
        )
    return PhaseMemory("load", weights=weights, workspace=dense_matrix_bytes, context=context)


def _uncached_weight_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    return weight_bytes(shape, replace(memory_config, on_cpu=False))


def estimate_train_phase(
    shape: ModelShape, memory_config: MemoryConfig, largest: MicroBatch, target: TargetDevice, *, padded: bool
) -> PhaseMemory:
    """Of the largest micro-batch."""
    memory = estimate_training_memory(shape, memory_config, largest, padded=padded)
    fragmentation_bytes = int(target.fragmentation * memory.fragmented_bytes)
    return PhaseMemory(
        "train",
        weights=memory.weights,
        adapter=memory.adapter,
        optimizer=memory.optimizer + memory.gradients,
        activations=memory.activations,
        head=memory.head,
        workspace=memory.temporaries
        + fragmentation_bytes
        + (_CUBLAS_WORKSPACE_BYTES if target.device == "cuda" else 0),
        context=target.context,
    )


def _estimate_evaluate_phase(
    shape: ModelShape, memory_config: MemoryConfig, data: DataLengths, resident: PhaseMemory
) -> PhaseMemory:
    longest = int(data.validation.tokens.max())
    supervised = int(data.validation.supervised.max())
    forward, _ = estimate_layer_passes(
        shape, "read", memory_config.mode, memory_config.rank, MicroBatch(longest, longest, supervised)
    )
    rows = supervised if shape.has_softcapping else min(supervised, max(1, MAX_EVALUATION_LOGITS // shape.vocab_size))
    return replace(
        resident,
        name="evaluate",
        activations=forward.rest + forward.layer,
        head=10 * rows * shape.vocab_size + 2 * supervised * shape.hidden_size,
        workspace=forward.peak,
    )


def _estimate_generate_phase(
    shape: ModelShape, memory_config: MemoryConfig, data: DataLengths, resident: PhaseMemory
) -> PhaseMemory:
    if not data.prompt_tokens:
        return replace(resident, name="generate")
    longest = max(data.prompt_tokens)
    batch_size = generation_batch_size(shape, longest + data.max_reply_tokens, memory_config.bytes_per_value)
    rows = min(len(data.prompt_tokens), batch_size)
    batch = MicroBatch(rows * longest, longest, rows)
    forward, _ = estimate_layer_passes(shape, "read", memory_config.mode, memory_config.rank, batch)
    cached = rows * (longest + data.max_reply_tokens) * kv_cache_bytes_per_token(shape, memory_config.bytes_per_value)
    return replace(
        resident,
        name="generate",
        activations=forward.rest + forward.layer + cached,
        head=8 * rows * shape.vocab_size,
        workspace=forward.peak,
    )
