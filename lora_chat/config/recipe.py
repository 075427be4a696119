"""The recipe: what the user asks for. Every setting has one home here, with its default."""

import math
import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator
from typing_extensions import Self

from lora_chat.config.audit import AuditSection
from lora_chat.config.base import NonEmptyStr, Seed, StrictModel
from lora_chat.config.data import DataSection
from lora_chat.config.sizes import SIZE_PATTERN

_MIN_SCALE, _MAX_SCALE = 1e-4, 4096.0
"""Below, an adapter does nothing; above, what it adds is beyond the numbers of 16 bits."""
_WINDOWS_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Run folders are called NAME-1, which is none; names stand alone in parcels and exports."""


class BaseSection(StrictModel):
    """The pretrained model to start from."""

    name: NonEmptyStr = "smollm2-135m-instruct"
    """`smollm2-135m-instruct` (embedded), `tiny-random` (two random layers, for trying things out),
    a folder in Hugging Face layout, or a hub id such as `Qwen/Qwen2.5-0.5B-Instruct`."""
    revision: NonEmptyStr | None = None
    """Branch, tag or commit of a hub id; a commit makes the run repeatable."""


class QuantizationSection(StrictModel):
    """Precision of the frozen base."""

    mode: Literal["4bit", "8bit", "none"] = "4bit"
    """`4bit` (NF4, QLoRA), `8bit` (LLM.int8) or `none` (16 bits where the processor has bf16)."""
    double_quantization: bool = True
    """4bit only: quantise the scales too, 0.37 bits a weight less (QLoRA, section 3)."""


class AdapterSection(StrictModel):
    """The LoRA weights that are trained."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Inner dimension of the two LoRA matrices."""
    alpha: Annotated[float, Field(gt=0, le=65536, allow_inf_nan=False)] = 32
    """The update is scaled by alpha / rank (rsLoRA: alpha / sqrt(rank))."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs dropped in training."""
    target_modules: Literal["all-linear"] | Annotated[tuple[NonEmptyStr, ...], Field(min_length=1)] = "all-linear"
    """`all-linear`, or a list of layer names as the model spells them, such as [q_proj, v_proj]."""
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """`lora`, `rslora` (arXiv 2312.03732, for high ranks) or `dora` (arXiv 2402.09353, slower)."""

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if self.variant == "rslora" else self.rank)

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if not _MIN_SCALE <= self.scale <= _MAX_SCALE:
            raise ValueError(
                f"alpha = {self.alpha:g} with rank = {self.rank} scales the update by {self.scale:g}; "
                f"from {_MIN_SCALE:g} to {_MAX_SCALE:g} are allowed"
            )
        return self


class TrainingSection(StrictModel):
    """Supervised fine-tuning; the loss is on assistant turns only."""

    epochs: Annotated[float, Field(gt=0, le=1e6)] = 3.0
    """Passes over the training dialogues."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimizer steps, whatever the epochs."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients with a larger norm are scaled down to it."""
    effective_batch_size: Annotated[int, Field(ge=1)] = 16
    """Dialogues per optimizer step."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Dialogues in memory at once; it must divide the effective batch size. `auto`: `micro_batch_tokens` decides,
    or up to 8 (4 on a GPU) where a model's dialogues cannot stand in one row."""
    micro_batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Most tokens in memory at once. Dialogues of a step are packed into micro-batches of about this many, without
    padding and without seeing each other; a longer dialogue goes alone. The result does not depend on it."""
    gradient_checkpointing: Literal["auto"] | bool | Annotated[int, Field(ge=1)] = "auto"
    """Recompute activations instead of keeping them: less memory, up to a third slower. A number: in so many
    decoder layers only. The result is the same."""
    fast_path: Literal["auto"] | bool = "auto"
    """Batching, attention and layers of lora_chat's own in place of TRL's: the same result, several times as fast on
    a CPU. Tried on the model before training, and left where it does not fit. `auto`: on a CPU, for it was not
    measured on a GPU yet."""
    optimizer: Literal["auto", "adamw", "adamw_8bit"] = "auto"
    """`adamw_8bit` keeps AdamW's two moments in 8 bits (arXiv 2110.02861): 6 bytes less for each trained weight.
    `auto`: only where a run would not fit otherwise."""
    memory: Annotated[str, StringConstraints(pattern=SIZE_PATTERN)] = "auto"
    """What a run may take: `auto` is 97 % of what is free, else a size such as 10GiB. Whatever is `auto` above is
    chosen to fit into it as fast as can be, and what does not fit is refused before the weights load. `unlimited`: no
    choice and no refusal."""
    seed: Seed = 0
    """Decides initial LoRA weights, dropout and the order of dialogues."""


class CheckpointSection(StrictModel):
    """Whole copies of a run under way, from which it goes on after a crash; one at the end of every epoch too."""

    every_minutes: Annotated[float, Field(gt=0)] | None = 5.0
    """Minutes between two; the step under way is finished first."""
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between two."""
    keep: Annotated[int, Field(ge=2)] = 2
    """How many of the newest stay."""


class EvaluationSection(StrictModel):
    """What is measured, base against adapted."""

    each_epoch: bool = False
    """Measure the validation loss after every epoch too."""
    samples: Annotated[int, Field(ge=0)] = 3
    """Held-out prompts that both answer, printed side by side."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest reply in a comparison, in tokens."""
    questions: NonEmptyStr | None = None
    """JSON lines of `question` and `accept`: strings of which one must occur in a right answer."""


class OutputSection(StrictModel):
    """Where the run is written."""

    directory: NonEmptyStr = "runs"
    """Folder of run folders; a relative one starts at the working directory."""
    name: Annotated[str, StringConstraints(pattern=r"^[^\W_][\w.-]*$", max_length=200)] | None = None
    """First part of the run folder's name; the recipe's file name if not given."""
    tensorboard: bool = False
    """Write TensorBoard events too (`pip install tensorboard`)."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        if name and _WINDOWS_DEVICE_NAME.fullmatch(name):
            raise ValueError("on Windows this is the name of a device")
        return name


class Recipe(StrictModel):
    """All that a fine-tuning run is asked to do."""

    base: BaseSection = BaseSection()
    """The pretrained model to start from."""
    quantization: QuantizationSection = QuantizationSection()
    """Precision of the frozen base."""
    adapter: AdapterSection = AdapterSection()
    """The LoRA weights that are trained."""
    data: DataSection
    """The dialogues."""
    audit: AuditSection = AuditSection()
    """What is done about what an audit of the dialogues finds."""
    training: TrainingSection = TrainingSection()
    """Supervised fine-tuning."""
    checkpoint: CheckpointSection = CheckpointSection()
    """From where a run goes on after a crash."""
    evaluation: EvaluationSection = EvaluationSection()
    """What is measured."""
    output: OutputSection = OutputSection()
    """Where the run is written."""
