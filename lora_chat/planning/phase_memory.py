"""Peak bytes of every phase of a run, computed from shapes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lora_chat.config.limits import GENERAL_MAX_NEW_TOKENS, MAX_EVALUATION_LOGITS
from lora_chat.data.lengths import DataLengths
from lora_chat.inference.generation import generation_batch_size, kv_cache_bytes_per_token
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import TargetDevice
from lora_chat.planning.layer_memory import MicroBatch, estimate_layer_passes
from lora_chat.planning.merge_plan import plan_merge
from lora_chat.planning.training_memory import estimate_training_memory
from lora_chat.planning.weight_memory import MemoryConfig, weight_bytes
from lora_chat.planning.workload import Workload

_EXTRA_LOADED_MATRICES = {"none": 0, "4bit": 1, "8bit": 2}
"""Number of 16-bit matrices in memory beside the quantized ones while a base loads.

Transformers' loader quantizes one matrix after the other, and LLM.int8 keeps the original of the current one
(core_model_loading.py, integrations/bitsandbytes.py, transformers 5.23)."""
_DECOMPOSITION_COPIES = 5
"""Copies in fp32 of a matrix that is decomposed: the matrix, the residual, both factors and LAPACK's workspace."""
_CUBLAS_WORKSPACE_BYTES = 32 * 2**20
"""Bytes of cuBLAS's workspace, the larger of the two usual sizes (PyTorch's CUBLAS_WORKSPACE_CONFIG)."""
_MERGE_OVERHEAD_BYTES = 400_000_000
"""Bytes of a merge beside the model and the process (benchmarks/merge_memory.py)."""
_PROCESS_BYTES = 560_000_000
"""Main memory of a Python process with all libraries imported, with torch 2.13.0 for the CPU."""


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes at the peak of a phase, by purpose."""

    name: str
    weights: int = 0
    adapter: int = 0
    optimizer: int = 0
    """Bytes of the optimizer's moments and of the gradients."""
    activations: int = 0
    """Bytes of activations, and of the keys and values of generated replies."""
    head: int = 0
    workspace: int = 0
    """Bytes of temporary tensors, and of gaps between blocks."""
    context: int = 0
    in_main_memory: bool = False
    """Whether the phase of a GPU run uses main memory and none of the GPU's."""

    @property
    def parts(self) -> dict[str, int]:
        """Return the bytes by name, in the order of the table."""
        names = ("weights", "adapter", "optimizer", "activations", "head", "workspace", "context")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        """Return the bytes of all parts."""
        return sum(self.parts.values())

    @property
    def largest_part(self) -> str:
        """Return the name of the largest part."""
        return max(self.parts, key=lambda name: self.parts[name])


def estimate_phases(
    shape: ModelShape, memory_config: MemoryConfig, workload: Workload, data: DataLengths, target: TargetDevice
) -> tuple[PhaseMemory, ...]:
    """Return the memory of loading, training, evaluating, generating, saving, merging and exporting."""
    weights, context = weight_bytes(shape, memory_config), target.context
    train = estimate_train_phase(shape, memory_config, workload.largest, target, padded=workload.mask_needed)
    adapter = train.adapter
    # The adapted model without optimizer: evaluation, generation and saving start from it.
    resident = PhaseMemory("", weights=weights, adapter=adapter, context=context)
    merge_phase = _estimate_merge_phase(shape, memory_config, data, adapter, target)
    evaluate = _estimate_evaluate_phase(shape, memory_config, data, resident)
    return (
        estimate_load_phase(shape, memory_config, context if target.loading is None else target.loading),
        train,
        *([_estimate_validate_phase(shape, memory_config, workload, data, train)] * memory_config.measures_in_training),
        evaluate,
        _estimate_generate_phase(shape, memory_config, data, resident),
        # A second copy of the adapter, in 16 bits: half of its fp32 bytes.
        replace(resident, name="save", workspace=adapter // 2),
        merge_phase,
        # llama.cpp reads the exported model, so no parity check of Transformers follows.
        replace(merge_phase, name="export", activations=0),
    )


def _estimate_merge_phase(
    shape: ModelShape, memory_config: MemoryConfig, data: DataLengths, adapter: int, target: TargetDevice
) -> PhaseMemory:
    """Return the memory of merging, which has the whole model unquantized in main memory."""
    merge = plan_merge(shape, memory_config, data, target)
    return PhaseMemory(
        "merge",
        weights=memory_config.bytes_per_value * shape.weights,
        adapter=adapter,
        # The merged model is read again for its parity check, in main memory if the GPU is too small.
        activations=merge.activations if merge and merge.device == "cpu" else 0,
        workspace=_MERGE_OVERHEAD_BYTES,
        context=_PROCESS_BYTES if merge else target.context,
        in_main_memory=merge is not None,
    )


def estimate_load_phase(shape: ModelShape, memory_config: MemoryConfig, context: int) -> PhaseMemory:
    """Return the memory of loading and quantizing the base."""
    weights = weight_bytes(shape, memory_config)
    # The largest matrix in 16 bits, as often as the loader has it beside the quantized ones.
    dense_matrix_bytes = (
        memory_config.bytes_per_value * shape.max_linear_weights * _EXTRA_LOADED_MATRICES[memory_config.mode]
    )
    if memory_config.on_cpu and memory_config.mode != "none":
        # The weight file is mapped until all layers are quantized; cached weights appear only afterwards.
        cached_bytes = weights - weight_bytes(shape, replace(memory_config, on_cpu=False))
        dense_matrix_bytes += max(0, memory_config.bytes_per_value * shape.num_linear_weights - cached_bytes)
    if memory_config.decomposes_weights:
        dense_matrix_bytes = max(dense_matrix_bytes, _decomposition_bytes(shape, memory_config))
    return PhaseMemory("load", weights=weights, workspace=dense_matrix_bytes, context=context)


def _decomposition_bytes(shape: ModelShape, memory_config: MemoryConfig) -> int:
    """Return the bytes while the adapter's start is computed: copies of the largest matrix, and the original base."""
    largest = 4 * max(linear.weights for linear in shape.linear_layers())
    in_main_memory = memory_config.loads_original and memory_config.on_cpu
    return _DECOMPOSITION_COPIES * largest + in_main_memory * memory_config.bytes_per_value * shape.weights


def estimate_train_phase(
    shape: ModelShape, memory_config: MemoryConfig, largest: MicroBatch, target: TargetDevice, *, padded: bool
) -> PhaseMemory:
    """Return the memory of training on the largest micro-batch."""
    memory = estimate_training_memory(shape, memory_config, largest, padded=padded)
    fragmentation_bytes = int(target.fragmentation * memory.fragmented_bytes)
    return PhaseMemory(
        "train",
        weights=memory.weights,
        adapter=memory.adapter,
        optimizer=memory.optimizer + memory.gradients,
        activations=memory.activations,
        head=memory.head,
        # Several processes sum all gradients in one fp32 buffer.
        workspace=memory.temporaries
        + fragmentation_bytes
        + memory.adapter * (memory_config.processes > 1)
        + (_CUBLAS_WORKSPACE_BYTES if target.device == "cuda" else 0),
        context=target.context,
    )


def _estimate_validate_phase(
    shape: ModelShape, memory_config: MemoryConfig, workload: Workload, data: DataLengths, train: PhaseMemory
) -> PhaseMemory:
    """Return the memory of measuring the validation set during training, in micro-batches of the same size.

    The weights, the optimizer's state and the buffers of the LM head stay; there are no gradients.
    """
    longest = data.validation.longest
    supervised = max(workload.largest.supervised, data.validation.most_supervised)
    batch = MicroBatch(max(workload.largest.tokens, longest), max(workload.largest.longest, longest), supervised)
    forward, _ = estimate_layer_passes(shape, "read", memory_config.mode, memory_config.rank, batch)
    return replace(
        train,
        name="validate",
        activations=forward.rest + forward.layer + memory_config.bytes_per_value * supervised * shape.hidden_size,
        workspace=forward.peak,
    )


def _estimate_evaluate_phase(
    shape: ModelShape, memory_config: MemoryConfig, data: DataLengths, resident: PhaseMemory
) -> PhaseMemory:
    """Return the memory of measuring the loss of the longest validation or test dialogue, which is a batch of one."""
    longest = data.longest_measured
    supervised = data.most_supervised_measured
    forward, _ = estimate_layer_passes(
        shape, "read", memory_config.mode, memory_config.rank, MicroBatch(longest, longest, supervised)
    )
    # Soft-capped logits cannot be computed in chunks (evaluation/chunked_loss.py).
    rows = supervised if shape.has_softcapping else min(supervised, max(1, MAX_EVALUATION_LOGITS // shape.vocab_size))
    return replace(
        resident,
        name="evaluate",
        # Without gradients only the current layer's activations exist.
        activations=forward.rest + forward.layer,
        # Logits in bf16 and fp32 and their log-softmax (2 + 4 + 4 bytes), and the states of supervised positions.
        head=10 * rows * shape.vocab_size + 2 * supervised * shape.hidden_size,
        workspace=forward.peak,
    )


def _estimate_generate_phase(
    shape: ModelShape, memory_config: MemoryConfig, data: DataLengths, resident: PhaseMemory
) -> PhaseMemory:
    """Return the memory of answering the longest batch of prompts, or of general items if that is larger."""
    batches = [
        _estimate_replies(shape, memory_config, prompts, max_reply_tokens, resident)
        for prompts, max_reply_tokens in (
            (data.prompt_tokens, data.max_reply_tokens),
            (data.general_prompt_tokens, GENERAL_MAX_NEW_TOKENS),
        )
        if prompts
    ]
    return max(batches, key=lambda phase: phase.total, default=replace(resident, name="generate"))


def _estimate_replies(
    shape: ModelShape,
    memory_config: MemoryConfig,
    prompts: Sequence[int],
    max_reply_tokens: int,
    resident: PhaseMemory,
) -> PhaseMemory:
    """Return the memory of answering the longest batch of prompts of these lengths."""
    longest = max(prompts)
    batch_size = generation_batch_size(shape, longest + max_reply_tokens, memory_config.bytes_per_value)
    rows = min(len(prompts), batch_size)
    # The prefill reads all prompts together and computes the logits of their last positions.
    batch = MicroBatch(rows * longest, longest, rows)
    forward, _ = estimate_layer_passes(shape, "read", memory_config.mode, memory_config.rank, batch)
    # Keys and values of prompt and reply, in all layers.
    cache_bytes = rows * (longest + max_reply_tokens) * kv_cache_bytes_per_token(shape, memory_config.bytes_per_value)
    return replace(
        resident,
        name="generate",
        activations=forward.rest + forward.layer + cache_bytes,
        # Logits of one position of each row, twice in fp32.
        head=8 * rows * shape.vocab_size,
        workspace=forward.peak,
    )
