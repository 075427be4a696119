"""What a user should know beside the figures of an estimate: its limits, and what the run will cost."""

from dataclasses import replace

from lora_chat.config.lora_variants import find_lora_variant
from lora_chat.config.plan import BYTES_BY_DTYPE, Plan
from lora_chat.planning.calibration import MachineBenchmark
from lora_chat.planning.measured_shape import find_memory_source
from lora_chat.planning.settings_search import Candidate, choose_plan
from lora_chat.planning.training_memory import TRL_TILE_TOKENS, TRL_TILE_VOCABULARY
from lora_chat.planning.weight_memory import weight_bytes
from lora_chat.system.memory_usage import total_memory_bytes

_TORCH_HEAD_BYTES_PER_LOGIT = 42
"""Bytes for each logit of a tile in TRL's loss without Triton, at its peak, counted on an emulated card."""


def list_notes(candidate: Candidate, benchmark: MachineBenchmark | None) -> tuple[str, ...]:
    """Return the notes of an estimate, the most important ones first."""
    notes = [
        *_note_quantization(candidate.plan),
        *_note_memory_source(candidate),
        *_note_int8(candidate),
        *_note_triton(candidate),
        *_note_sharded_loading(candidate),
        *_note_main_memory(candidate),
    ]
    if candidate.problem.data.is_estimated:
        notes.append(
            "Tokens are counted with the embedded base's tokenizer, because this base's tokenizer is not available."
        )
    notes += _note_missing_parts(candidate.plan)
    notes.append(_describe_times(candidate, benchmark))
    return tuple(notes)


def _note_quantization(plan: Plan) -> list[str]:
    """Return the share of the weights that is quantized."""
    precision = plan.precision
    if precision.coverage is None:
        return []
    bits = 8 * BYTES_BY_DTYPE[precision.dtype]
    return [f"{precision.coverage.describe(precision.mode, bits)}."]


def _note_memory_source(candidate: Candidate) -> list[str]:
    """Return how the memory is known if the base has no formulas."""
    shape = candidate.problem.shape
    source = find_memory_source(shape)
    if source == "formulas":
        return []
    name = shape.architecture.model_type
    if source == "upper bound":
        return [f"The memory is an upper bound: {name} models cannot run without weights."]
    return [f"The memory was measured by running the layers of this {name} model without weights."]


def _note_int8(candidate: Candidate) -> list[str]:
    """Return the cost of LLM.int8 on a GPU, and the mode to use instead. The fast path trains without it.

    bitsandbytes 0.50 asks for each product whether its input has outliers (`outliers.any()` in backends/cuda/ops.py),
    and the program waits for the answer. Public measurements are of inference only: 2.5 times as long as fp16, and
    1.6 times as long as 4 bits, on a T4 with 0.5 billion weights
    (https://earino.github.io/applied-deep-learning/site/blog/11_int8_is_slower.html).
    """
    plan, shape = candidate.plan, candidate.problem.shape
    if plan.precision.device != "cuda" or plan.precision.mode != "8bit":
        return []
    products = shape.num_linears
    better = _find_better_mode(candidate)
    advice = (
        f" Faster: --set quantization.mode={better.plan.precision.mode} ({better.peak / 2**30:.2f} GiB)."
        if better
        else ""
    )
    if plan.training.fast_path:
        return [
            f"8bit: evaluation and replies use LLM.int8, which waits for the GPU in each of {products} products; the "
            "times above do not include that."
        ]
    return [
        "8bit is the slowest mode on a GPU without the fast path: LLM.int8 waits for the GPU in each of its "
        f"{products} products, in every forward pass. The times above do not include that.{advice}"
    ]


def _find_better_mode(candidate: Candidate) -> Candidate | None:
    """Return the plan without quantization if it fits, otherwise in 4 bits; None if neither fits."""
    problem = candidate.problem
    if candidate.plan.precision.stored is not None:
        return None  # the base's files decide
    for mode in ("none", "4bit"):
        precision = candidate.plan.precision.model_copy(update={"mode": mode})
        plan = choose_plan(candidate.plan.model_copy(update={"precision": precision}), problem, problem.target.limit)
        better = Candidate(plan, problem)
        if better.fits(problem.target.limit):
            return better
    return None


def _note_triton(candidate: Candidate) -> list[str]:
    """Return the memory that TRL's LM head takes on the stock path of a GPU where Triton does not start.

    PyTorch's operations then score all positions, not only the supervised ones, in several fp32 tensors for each tile
    of logits (trl/kernels/chunked_logprob.py and `add_fused_lm_head` in trl/trainer/utils.py, TRL 1.16).
    """
    plan, shape = candidate.plan, candidate.problem.shape
    if plan.precision.device != "cuda" or plan.training.fast_path:
        return []
    positions = min(candidate.workload.largest.tokens, TRL_TILE_TOKENS)
    size = _TORCH_HEAD_BYTES_PER_LOGIT * positions * min(shape.vocab_size, TRL_TILE_VOCABULARY)
    return [
        "The stock path's loss uses Triton, which needs a C compiler and Python's headers. Without them it "
        f"takes up to {size / 2**30:.2f} GiB more and more time; training then tries smaller micro-batches."
    ]


def _note_sharded_loading(candidate: Candidate) -> list[str]:
    """Return the main memory that processes need while they load a base that they shard on GPUs."""
    layout = candidate.problem.layout
    if not layout.sharded or candidate.problem.target.device == "cpu":
        return []
    size = weight_bytes(candidate.problem.shape, replace(candidate.memory_config, sharded=False))
    return [f"Each process loads the whole base into main memory first: {layout.count} x {size / 2**30:.2f} GiB."]


def _note_main_memory(candidate: Candidate) -> list[str]:
    """Return a note if this machine's main memory is too small for a later merge of a GPU run."""
    merge = next(phase for phase in candidate.phases if phase.name == "merge")
    if not (merge.in_main_memory and candidate.problem.target.at_hand):
        return []
    memory = total_memory_bytes()
    if merge.total <= memory:
        return []
    return [
        f"Merging takes {merge.total / 2**30:.2f} GiB of main memory, and this machine has {memory / 2**30:.2f} GiB: "
        "add swap, merge on another machine, or export the adapter without its base (lora-chat export RUN --to peft)."
    ]


def _note_missing_parts(plan: Plan) -> list[str]:
    """Return the settings whose memory and time the estimate does not include."""
    variant = find_lora_variant(plan.adapter.variant)
    if not plan.adapter.dropout and variant.has_estimate:
        return []
    feature = "dropout" if plan.adapter.dropout else variant.title
    return [f"The estimate does not include the memory and time of {feature}."]


def _describe_times(candidate: Candidate, benchmark: MachineBenchmark | None) -> str:
    """Return where the times come from."""
    if benchmark:
        return "Times and memory: from a benchmark of small models with these widths on this machine."
    if speed := candidate.problem.target.speed:
        return f"Times: {speed.source}."
    if find_memory_source(candidate.problem.shape) != "formulas":
        return "Times: unknown for this architecture."
    return "Times: unknown, because the speed of this device is unknown."
