"""Peak bytes of every phase of a run, from shapes alone."""

from dataclasses import dataclass, replace

from lora_chat.data.lengths import DataLengths
from lora_chat.inference.batching import answered_together, cached_bytes
from lora_chat.models.shape import ModelShape
from lora_chat.planning.device import Target
from lora_chat.planning.layer_memory import MicroBatch, layer_bytes
from lora_chat.planning.training_memory import Setting, training_memory, weight_bytes
from lora_chat.planning.workload import Workload

READ_LOGITS = 2**25
"""Logits that are made at once where a loss is only measured (evaluation/scores.py)."""
_LOADED_TOGETHER = {"none": 0, "4bit": 1, "8bit": 2}
"""Matrices in 16 bits beside those that are quantised: transformers' loader quantises one after the other, and LLM.int8
keeps what it came from (core_model_loading.py, integrations/bitsandbytes.py, transformers 5.23)."""
_WORKSPACE = 32 * 2**20
"""cuBLAS's, the larger of the usual two (PyTorch's CUBLAS_WORKSPACE_CONFIG)."""
_MERGE_REST = 400_000_000
"""What a merge takes above the model and the program (benchmarks/merge_memory.py)."""
_PROGRAM = 560_000_000
"""Main memory of Python with all libraries imported, torch 2.13.0 for the CPU."""


@dataclass(frozen=True)
class Phase:
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


def make_phases(
    shape: ModelShape, setting: Setting, work: Workload, data: DataLengths, target: Target
) -> tuple[Phase, ...]:
    """Of loading, training, evaluating, saving, merging, exporting and generating."""
    weights, context = weight_bytes(shape, setting), target.context
    train = train_phase(shape, setting, work.largest, target, padded=work.mask_needed)
    adapter = train.adapter
    held = Phase("", weights=weights, adapter=adapter, context=context)
    gpu = target.device == "cuda"
    merged = setting.width * shape.weights
    whole = Phase(
        "merge",
        weights=merged,
        adapter=adapter,
        workspace=_MERGE_REST,
        context=_PROGRAM if gpu else context,
        in_main_memory=gpu,
    )
    return (
        load_phase(shape, setting, context if target.loading is None else target.loading),
        train,
        _evaluate(shape, setting, data, held),
        _generate(shape, setting, data, held),
        replace(held, name="save", workspace=adapter // 2),
        whole,
        replace(whole, name="export"),
    )


def load_phase(shape: ModelShape, setting: Setting, context: int) -> Phase:
    """Of loading and quantising the base."""
    weights = weight_bytes(shape, setting)
    matrices = setting.width * max(linear.weights for linear in shape.linears()) * _LOADED_TOGETHER[setting.mode]
    if setting.on_cpu and setting.mode != "none":  # the file is mapped until all is quantised
        matrices += max(0, setting.width * shape.linear_weights - (weights - _unheld(shape, setting)))
    return Phase("load", weights=weights, workspace=matrices, context=context)


def _unheld(shape: ModelShape, setting: Setting) -> int:
    return weight_bytes(shape, replace(setting, on_cpu=False))


def train_phase(shape: ModelShape, setting: Setting, largest: MicroBatch, target: Target, *, padded: bool) -> Phase:
    """Of the largest micro-batch."""
    memory = training_memory(shape, setting, largest, padded=padded)
    between = int(target.fragmentation * memory.cut_up)
    return Phase(
        "train",
        weights=memory.weights,
        adapter=memory.adapter,
        optimizer=memory.optimizer + memory.gradients,
        activations=memory.activations,
        head=memory.head,
        workspace=memory.temporaries + between + (_WORKSPACE if target.device == "cuda" else 0),
        context=target.context,
    )


def _evaluate(shape: ModelShape, setting: Setting, data: DataLengths, held: Phase) -> Phase:
    longest = int(data.validation.tokens.max())
    supervised = int(data.validation.supervised.max())
    reading, _ = layer_bytes(shape, "read", setting.mode, setting.rank, MicroBatch(longest, longest, supervised))
    rows = supervised if shape.capped else min(supervised, max(1, READ_LOGITS // shape.vocabulary))
    return replace(
        held,
        name="evaluate",
        activations=reading.rest + reading.layer,
        head=10 * rows * shape.vocabulary + 2 * supervised * shape.hidden,
        workspace=reading.peak,
    )


def _generate(shape: ModelShape, setting: Setting, data: DataLengths, held: Phase) -> Phase:
    if not data.prompts:
        return replace(held, name="generate")
    longest = max(data.prompts)
    together = answered_together(shape, longest + data.new_tokens, setting.width)
    rows = min(len(data.prompts), together)
    batch = MicroBatch(rows * longest, longest, rows)
    reading, _ = layer_bytes(shape, "read", setting.mode, setting.rank, batch)
    cached = rows * (longest + data.new_tokens) * cached_bytes(shape, setting.width)
    return replace(
        held,
        name="generate",
        activations=reading.rest + reading.layer + cached,
        head=8 * rows * shape.vocabulary,
        workspace=reading.peak,
    )
