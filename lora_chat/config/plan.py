"""The plan of a run: a recipe resolved for a machine by a pure function, without weights and without torch."""

from typing import Literal

from lora_chat.config.audit import AuditSection
from lora_chat.config.base import StrictModel
from lora_chat.config.data import DataSection
from lora_chat.config.lora_variants import find_initialization
from lora_chat.config.recipe import (
    AdapterSection,
    BaseSection,
    CheckpointSection,
    EvaluationSection,
    OutputSection,
    QuantizationSection,
    Recipe,
    TrainingSection,
)
from lora_chat.config.stored_quantization import QuantizationCoverage, QuantizationMode, StoredQuantization
from lora_chat.errors import RecipeError
from lora_chat.system.hardware import Hardware

FAST_PATH_CAPABILITY = (8, 0)
"""Lowest compute capability of a GPU on which the fast path is the default. Its attention kernel needs Ampere."""
_DEFAULT_MICRO_BATCH_TOKENS = 2048
"""Tokens of a micro-batch. Two cores reach their full speed with it; more only takes memory (benchmarks/LOG.md)."""

_QUANTIZATION_CAPABILITY = {"4bit": (6, 0), "8bit": (7, 5)}
"""Lowest compute capability that bitsandbytes supports in each mode.

Source: https://huggingface.co/docs/bitsandbytes/v0.50.0/installation
"""

Dtype = Literal["bfloat16", "float16", "float32"]
BYTES_BY_DTYPE: dict[Dtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a value by its dtype."""
DTYPE_TITLES: dict[Dtype, str] = {"bfloat16": "bf16", "float16": "fp16 with a gradient scaler", "float32": "fp32"}
"""Descriptions of training in each dtype, for users."""


class PrecisionPlan(StrictModel):
    """Device, quantization and dtype of the frozen base."""

    device: Literal["cuda", "cpu"]
    mode: Literal["4bit", "8bit", "none"]
    double_quantization: bool
    dtype: Dtype
    """Dtype of matrix products, and of weights that are not quantized."""
    stored: StoredQuantization | None = None
    """Quantization of the base's files, which decides the mode; None if they are not quantized."""
    coverage: QuantizationCoverage | None = None
    """Number of weights that the mode quantizes; None if nothing is quantized or the number is unknown."""


class TrainingPlan(TrainingSection):
    """The training section of a recipe, with every `auto` resolved."""

    micro_batch_size: int
    micro_batch_tokens: int | None  # type: ignore[assignment]
    """Number of tokens per micro-batch. None if the recipe sets `micro_batch_size`, which then decides."""
    gradient_checkpointing: bool | int
    """True for every layer, or the number of layers that recompute their activations."""
    gradient_accumulation_steps: int
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    cached_layers: int = 0
    """Number of decoder layers whose quantized weights are also on the GPU in 16 bits during training."""
    keep: Literal["best", "last"] = "last"
    """Step whose adapter is saved. Runs of older versions, whose plans lack it, keep the last one."""
    fast_path: bool
    """Whether the dialogues of a micro-batch are packed into one row, instead of padded, and layers are fused."""


class Plan(StrictModel):
    """The resolved settings of one run."""

    base: BaseSection
    precision: PrecisionPlan
    adapter: AdapterSection
    data: DataSection
    audit: AuditSection = AuditSection()
    training: TrainingPlan
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection
    output: OutputSection
    open_settings: tuple[str, ...] = ()
    """Settings of the training section that are chosen for the available memory, because the recipe says `auto`."""


def make_plan(recipe: Recipe, hardware: Hardware) -> Plan:
    """Resolve a recipe for a machine. Raises RecipeError for settings that cannot work on any machine."""
    check_target_modules(recipe.adapter)
    _check_initialization(recipe)
    _check_validation(recipe)
    precision = plan_precision(recipe.quantization, hardware)
    return Plan(
        base=recipe.base,
        precision=precision,
        adapter=recipe.adapter,
        data=recipe.data,
        audit=recipe.audit,
        training=_plan_training(recipe.training, hardware, precision.dtype),
        checkpoint=recipe.checkpoint,
        evaluation=recipe.evaluation,
        output=recipe.output,
        open_settings=_list_auto_settings(recipe.training),
    )


def _list_auto_settings(training: TrainingSection) -> tuple[str, ...]:
    """Return the settings that are `auto`. If the recipe sets the micro-batch size in one unit, neither unit is."""
    names = ["gradient_checkpointing", "optimizer"]
    if training.micro_batch_size == "auto":
        names += ["micro_batch_size", "micro_batch_tokens"] if training.micro_batch_tokens == "auto" else []
    return tuple(name for name in names if getattr(training, name) == "auto")


def plan_precision(quantization: QuantizationSection, hardware: Hardware) -> PrecisionPlan:
    """Return the precision of the base in training: bf16 if the device has it, else fp16 on a GPU and fp32 on a CPU."""
    dtype: Dtype = "bfloat16" if hardware.bfloat16 else "float16" if hardware.device == "cuda" else "float32"
    return _make_precision(quantization, hardware, "float32" if quantization.dtype == "float32" else dtype)


def plan_inference_precision(
    quantization: QuantizationSection, hardware: Hardware, trained: Dtype | None
) -> PrecisionPlan:
    """Return the precision of the base after a training in the dtype `trained`, which is None if it is unknown.

    After fp16 it is fp16 on every GPU, and fp32 on a CPU, where fp16 is slow and bf16 has fewer digits. Otherwise it is
    bf16 if the device has it, and fp32 if not, because values that bf16 and fp32 can represent may overflow in fp16.
    """
    if trained == "float16":
        return _make_precision(quantization, hardware, "float16" if hardware.device == "cuda" else "float32")
    return _make_precision(quantization, hardware, "bfloat16" if hardware.bfloat16 else "float32")


def _make_precision(quantization: QuantizationSection, hardware: Hardware, dtype: Dtype) -> PrecisionPlan:
    """Return the precision of the base in a dtype on this device. Raises RecipeError for a GPU without kernels."""
    check_quantization_kernels(quantization.mode, hardware)
    return PrecisionPlan(
        device=hardware.device,
        mode=quantization.mode,
        double_quantization=quantization.double_quantization,
        dtype=dtype,
    )


def check_quantization_kernels(mode: QuantizationMode, hardware: Hardware) -> None:
    """Raise RecipeError for a GPU that lacks bitsandbytes' kernels for a mode."""
    needed = _QUANTIZATION_CAPABILITY.get(mode)
    if needed and hardware.capability and hardware.capability < needed:
        has, needs = (".".join(map(str, capability)) for capability in (hardware.capability, needed))
        other = "4bit" if hardware.capability >= _QUANTIZATION_CAPABILITY["4bit"] else "none"
        raise RecipeError(
            f"quantization.mode: {mode} needs a GPU of compute capability {needs} or higher, because "
            f"bitsandbytes has no kernels for others, and {hardware.name} has {has}. "
            f"Fix: --set quantization.mode={other}, or use the CPU with --set base.device=cpu."
        )


def check_target_modules(adapter: AdapterSection) -> None:
    """Raise RecipeError for an adapter on the LM head. It would not be trained, because TRL's fused head reads the
    weight itself."""
    if not isinstance(adapter.target_modules, str) and any(
        n.split(".")[-1] == "lm_head" for n in adapter.target_modules
    ):
        raise RecipeError(
            "adapter.target_modules: lm_head cannot have an adapter, because the loss would ignore it. "
            "Fix: remove it from the list, or use `all-linear`, which leaves it out."
        )


def _check_validation(recipe: Recipe) -> None:
    """Raise RecipeError for settings that need measurements of a validation set, if none exist."""
    evaluation = recipe.evaluation
    needs = {
        "evaluation.each_epoch": (evaluation.each_epoch is True, "false"),
        "evaluation.every_steps": (evaluation.every_steps is not None, "null"),
        "training.early_stopping": (recipe.training.early_stopping is not None, "null"),
    }
    if not recipe.data.has_validation:
        for name, (is_set, unset) in needs.items():
            if is_set:
                raise RecipeError(
                    f"{name} needs a validation set, but data.validation_share is 0. Fix: name data.validation, "
                    f"or --set {name}={unset}."
                )
    if recipe.training.early_stopping is not None and evaluation.each_epoch is False and evaluation.every_steps is None:
        raise RecipeError(
            "training.early_stopping needs measurements of the validation set, but evaluation.each_epoch is false and "
            "evaluation.every_steps is not set. Fix: --set evaluation.each_epoch=true, or "
            "--set evaluation.every_steps=N."
        )


def _check_initialization(recipe: Recipe) -> None:
    """Raise RecipeError for a start of the adapter that needs another quantization."""
    if find_initialization(recipe.adapter.initialization).fits_residual and recipe.quantization.mode != "4bit":
        raise RecipeError(
            f"adapter.initialization: {recipe.adapter.initialization} approximates what 4-bit quantization takes from "
            f"the weights, and quantization.mode is {recipe.quantization.mode}. "
            "Fix: --set quantization.mode=4bit, or --set adapter.initialization=pissa."
        )


def _plan_micro_batch_tokens(training: TrainingSection) -> int | None:
    if training.micro_batch_tokens != "auto":
        return training.micro_batch_tokens
    return _DEFAULT_MICRO_BATCH_TOKENS if training.micro_batch_size == "auto" else None


def uses_fast_path(hardware: Hardware, dtype: Dtype) -> bool:
    """Return whether `fast_path: auto` is on: on a CPU, and on an NVIDIA GPU with bf16 from Ampere on.

    AMD cards have no capability here, because the fast path was never tried on them.
    """
    if hardware.device == "cpu":
        return True
    return dtype == "bfloat16" and hardware.capability is not None and hardware.capability >= FAST_PATH_CAPABILITY


def _plan_training(training: TrainingSection, hardware: Hardware, dtype: Dtype) -> TrainingPlan:
    effective_batch_size = training.effective_batch_size
    if training.micro_batch_size == "auto":
        # The rows may be padded. On a GPU 4 rows of 1,024 tokens fit beside an 8B base in 4 bits.
        limit = 8 if hardware.device == "cpu" else 4
        micro_batch_size = max(n for n in range(1, limit + 1) if effective_batch_size % n == 0)
    else:
        micro_batch_size = training.micro_batch_size
    if effective_batch_size % micro_batch_size:
        divisors = [n for n in range(1, min(effective_batch_size, 1000) + 1) if effective_batch_size % n == 0]
        raise RecipeError(
            f"training.micro_batch_size: {micro_batch_size} does not divide training.effective_batch_size "
            f"({effective_batch_size}). Fix: choose one of {', '.join(map(str, divisors))}."
        )
    checkpointing = training.gradient_checkpointing
    fast_path = uses_fast_path(hardware, dtype) if training.fast_path == "auto" else training.fast_path
    resolved: dict[str, object] = {
        "micro_batch_size": micro_batch_size,
        "micro_batch_tokens": _plan_micro_batch_tokens(training),
        "gradient_accumulation_steps": effective_batch_size // micro_batch_size,
        "optimizer": "adamw" if training.optimizer == "auto" else training.optimizer,
        "gradient_checkpointing": hardware.device == "cuda" if checkpointing == "auto" else checkpointing,
        # The gradient scaler of fp16 cannot scale the gradients of the fast path's LM head.
        "fast_path": fast_path and dtype != "float16",
    }
    return TrainingPlan.model_validate(training.model_dump() | resolved)
