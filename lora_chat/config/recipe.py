"""The recipe: every setting of a run, with its default, its limits and its description."""

import math
import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator
from typing_extensions import Self

from lora_chat.config.audit import AuditSection
from lora_chat.config.base import NonEmptyStr, Seed, StrictModel
from lora_chat.config.data import DataSection
from lora_chat.config.lora_variants import LoraVariantName, find_lora_variant
from lora_chat.config.sizes import SIZE_PATTERN
from lora_chat.system.device_choice import DEVICE_PATTERN, explain_unknown_device

_MIN_SCALE, _MAX_SCALE = 1e-4, 4096.0
"""Range of the scale of an update. A smaller scale has no effect, and a larger one exceeds the range of 16 bits."""
_WINDOWS_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Pattern of names that Windows reserves. Run folders are named NAME-1, but parcels and exports use the name itself."""


class BaseSection(StrictModel):
    """The pretrained model to start from."""

    name: NonEmptyStr = "smollm2-135m-instruct"
    """Name of the base: `smollm2-135m-instruct` (embedded), `tiny-random` (two layers of random weights, for tests),
    a folder in the layout of Hugging Face, or a hub id such as `Qwen/Qwen2.5-0.5B-Instruct`."""
    revision: NonEmptyStr | None = None
    """Branch, tag or commit of a hub id; a commit makes the run repeatable."""
    device: NonEmptyStr = "auto"
    """Device of the run: `cpu`, `cuda`, or `cuda:N` for a card by its number. `auto` and `cuda` use the card with most
    free memory; `auto` uses the CPU if there is no card. The environment variable LORA_CHAT_DEVICE replaces `auto`. A
    run can be resumed on another card."""

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not re.fullmatch(DEVICE_PATTERN, device):
            raise ValueError(explain_unknown_device(device))
        return device


class QuantizationSection(StrictModel):
    """Precision of the frozen base."""

    mode: Literal["4bit", "8bit", "none"] = "4bit"
    """Quantization of the base: `4bit` (NF4, QLoRA), `8bit` (LLM.int8) or `none` (weights in `dtype`)."""
    double_quantization: bool = True
    """Whether `4bit` quantizes the scales too, which saves 0.37 bits per weight (QLoRA, section 3)."""
    dtype: Literal["auto", "float32"] = "auto"
    """Type of matrix products in training: `auto` (bf16 if the device has it; otherwise fp16 with a gradient scaler on
    a GPU, such as T4 and RTX 20xx, and fp32 on a CPU), or `float32`, which is slower on a GPU."""


class AdapterSection(StrictModel):
    """The LoRA weights that are trained."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Inner dimension of the two LoRA matrices."""
    alpha: Annotated[float, Field(gt=0, le=65536, allow_inf_nan=False)] = 32
    """Numerator of the scale of the update, which is alpha / rank (rsLoRA: alpha / sqrt(rank))."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that training drops."""
    target_modules: Literal["all-linear"] | Annotated[tuple[NonEmptyStr, ...], Field(min_length=1)] = "all-linear"
    """Layers with an adapter: `all-linear`, or a list of layer names of the model, such as [q_proj, v_proj]."""
    variant: LoraVariantName = "lora"
    """Variant of LoRA: `lora`, `rslora` (arXiv 2312.03732, for high ranks) or `dora` (arXiv 2402.09353, slower)."""

    @property
    def scale(self) -> float:
        """Return the factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if find_lora_variant(self.variant).scales_by_sqrt_rank else self.rank)

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if not _MIN_SCALE <= self.scale <= _MAX_SCALE:
            raise ValueError(
                f"alpha = {self.alpha:g} with rank = {self.rank} scales the update by {self.scale:g}; "
                f"the scale must be from {_MIN_SCALE:g} to {_MAX_SCALE:g}"
            )
        return self


class TrainingSection(StrictModel):
    """Supervised fine-tuning; the loss is on assistant turns only."""

    epochs: Annotated[float, Field(gt=0, le=1e6)] = 3.0
    """Number of passes over the training dialogues."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of optimizer steps, whatever the number of epochs."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Schedule of the learning rate after the warm-up."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the optimizer steps in which the learning rate rises from zero to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Maximum norm of the gradient. A larger gradient is scaled down to it."""
    effective_batch_size: Annotated[int, Field(ge=1)] = 16
    """Number of dialogues per optimizer step."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Number of dialogues that are computed together. It must divide the effective batch size. With `auto`,
    `micro_batch_tokens` decides; if the model cannot use packed batches, it is up to 8 (4 on a GPU)."""
    micro_batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Number of tokens that are computed together. The dialogues of a step are packed into micro-batches of about this
    size, without padding and without attention between dialogues. A longer dialogue is a micro-batch of one. The
    result does not depend on this setting."""
    gradient_checkpointing: Literal["auto"] | bool | Annotated[int, Field(ge=1)] = "auto"
    """Whether activations are recomputed in the backward pass instead of kept, which takes less memory and is up to a
    third slower. A number is the number of decoder layers that do so. The result does not depend on this setting."""
    fast_path: Literal["auto"] | bool = "auto"
    """Whether batching, attention and layers of lora_chat replace those of TRL. The result is the same, several times
    as fast on a CPU. The fast path is checked on the model before training, and is not used if the model does not
    support it. `auto` uses it on a CPU, and on NVIDIA GPUs with bf16 and compute capability 8.0 or higher (Ampere and
    later); older GPUs, AMD cards and training in fp32 or fp16 on a GPU use the stock path."""
    optimizer: Literal["auto", "adamw", "adamw_8bit"] = "auto"
    """Optimizer. `adamw_8bit` keeps the two moments of AdamW in 8 bits (arXiv 2110.02861), which saves 6 bytes per
    trained weight. `auto` uses it only if the run would not fit otherwise."""
    memory: Annotated[str, StringConstraints(pattern=SIZE_PATTERN)] = "auto"
    """Maximum memory of a run: a size such as 10GiB, or `auto` for 97 % of the free memory. The fastest values that fit
    are chosen for the other settings that are `auto`, and a run that cannot fit is refused before the weights load.
    With `unlimited` nothing is chosen or refused."""
    seed: Seed = 0
    """Seed of the initial LoRA weights, of dropout and of the order of the dialogues."""


class CheckpointSection(StrictModel):
    """Complete copies of an unfinished run, from which it can continue after a crash. Each epoch ends with one too."""

    every_minutes: Annotated[float, Field(gt=0)] | None = 5.0
    """Minutes between checkpoints. The current step finishes first."""
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between checkpoints."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Number of checkpoints that are kept. Older ones are deleted."""


class EvaluationSection(StrictModel):
    """The comparison of the base with the adapted model."""

    each_epoch: bool = False
    """Whether the validation loss is measured after every epoch too."""
    samples: Annotated[int, Field(ge=0)] = 3
    """Number of validation prompts that both models answer, printed side by side."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Maximum length of a reply in a comparison, in tokens."""
    questions: NonEmptyStr | None = None
    """File of questions as JSON lines with `question` and `accept`. A right answer contains one of the strings in
    `accept`."""


class OutputSection(StrictModel):
    """The location and the name of the run folder."""

    directory: NonEmptyStr = "runs"
    """Folder of the run folders. A relative path starts at the working directory."""
    name: Annotated[str, StringConstraints(pattern=r"^[^\W_][\w.-]*$", max_length=200)] | None = None
    """First part of the name of the run folder. By default it is the file name of the recipe."""
    tensorboard: bool = False
    """Whether TensorBoard events are written too (`pip install tensorboard`)."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        if name and _WINDOWS_DEVICE_NAME.fullmatch(name):
            raise ValueError("Windows reserves this name for a device")
        return name


class Recipe(StrictModel):
    """The settings of a fine-tuning run, one section each."""

    base: BaseSection = BaseSection()
    """The pretrained model to start from."""
    quantization: QuantizationSection = QuantizationSection()
    """Precision of the frozen base."""
    adapter: AdapterSection = AdapterSection()
    """The LoRA weights that are trained."""
    data: DataSection
    """The dialogues."""
    audit: AuditSection = AuditSection()
    """The action for each kind of finding in the dialogues."""
    training: TrainingSection = TrainingSection()
    """Supervised fine-tuning."""
    checkpoint: CheckpointSection = CheckpointSection()
    """Copies of an unfinished run for `--resume`."""
    evaluation: EvaluationSection = EvaluationSection()
    """The comparison of the base with the adapted model."""
    output: OutputSection = OutputSection()
    """The location and the name of the run folder."""
