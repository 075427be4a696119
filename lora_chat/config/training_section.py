"""The section `training` of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator
from typing_extensions import Self

from lora_chat.config.base import Seed, StrictModel
from lora_chat.config.sizes import SIZE_PATTERN


class TrainingSection(StrictModel):
    """Supervised fine-tuning; the loss is on assistant turns only, unless `data.loss` is `all`."""

    epochs: Annotated[float, Field(gt=0, le=1e6)] = 3.0
    """Number of passes over the training dialogues."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of optimizer steps, whatever the number of epochs."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    """Peak learning rate of AdamW."""
    min_learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Learning rate at the end of the schedule `cosine`, in place of zero."""
    lora_plus_ratio: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Learning rate of the matrices B in multiples of that of the matrices A, which is `learning_rate` (LoRA+, arXiv
    2402.12354, which recommends 16 and a smaller `learning_rate`). Trained biases and vectors follow B, as in PEFT."""
    schedule: Literal["cosine", "cosine_restarts", "linear", "constant"] = "cosine"
    """Schedule of the learning rate after the warm-up. `cosine_restarts` returns to the peak at the start of each of
    `restart_cycles` cycles."""
    restart_cycles: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Number of cycles of `cosine_restarts`; 2 by default."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] | None = 0.05
    """Share of the optimizer steps in which the learning rate rises from zero to its peak."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Number of these steps, in place of `warmup_share`."""
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Decay rate of AdamW's mean of squared gradients. A lower rate forgets outliers sooner."""
    neftune_alpha: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Scale of the uniform noise that training adds to the embeddings of a dialogue of L tokens, which is
    alpha / sqrt(L * hidden size) (NEFTune, arXiv 2310.05914). Evaluation has no noise."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target's probability that the training loss spreads over the whole vocabulary. The validation loss
    stays the plain cross entropy, so that it can be compared."""
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
    keep: Literal["best", "last"] = "best"
    """Step whose adapter is saved: `best` is the earliest measured step whose `keep_by` is within one standard error of
    the best one, and `last` is the last step. Without a validation set, or with fewer than 8 validation rows, it is the
    last step."""
    keep_by: Literal["validation_loss", "token_accuracy"] = "validation_loss"
    """Measure of the validation set that `keep` and `early_stopping` compare: the mean loss of its supervised tokens,
    or the share of them that the model predicts."""
    early_stopping: Annotated[int, Field(ge=1)] | None = None
    """Number of measurements of the validation set without an improvement after which training stops. The schedule of
    the learning rate stays the same."""
    seed: Seed = 0
    """Seed of the initial LoRA weights, of dropout and of the order of the dialogues."""

    @property
    def warmup(self) -> int | float:
        """Return the number of warm-up steps, or their share of all steps if it is below 1."""
        return self.warmup_steps if self.warmup_steps is not None else self.warmup_share or 0.0

    @field_validator("keep_by", mode="before")
    @classmethod
    def _check_keep_by(cls, name: object) -> object:
        """Raise ValueError for a metric that is not measured during training."""
        if isinstance(name, str) and name not in ("validation_loss", "token_accuracy"):
            raise ValueError(
                f"{name} is not measured during training, because it needs generated replies or another data set; "
                "choose validation_loss or token_accuracy"
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _let_warmup_steps_replace_share(cls, values: object) -> object:
        """Leave out the default share if the number of steps is set."""
        if isinstance(values, dict) and values.get("warmup_steps") is not None and "warmup_share" not in values:
            return values | {"warmup_share": None}
        return values

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        """Raise ValueError for settings of the schedule that exclude each other."""
        if self.warmup_steps is not None and self.warmup_share is not None:
            raise ValueError("warmup_steps and warmup_share set the same thing; keep one of them")
        if self.warmup_steps and self.max_steps and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} leaves none of max_steps = {self.max_steps} for the peak"
            )
        if self.min_learning_rate is not None and self.schedule != "cosine":
            raise ValueError(f"min_learning_rate belongs to the schedule cosine, not to {self.schedule}")
        if self.min_learning_rate is not None and self.min_learning_rate >= self.learning_rate:
            raise ValueError(
                f"min_learning_rate = {self.min_learning_rate:g} is not below learning_rate = {self.learning_rate:g}"
            )
        if self.restart_cycles is not None and self.schedule != "cosine_restarts":
            raise ValueError(f"restart_cycles belongs to the schedule cosine_restarts, not to {self.schedule}")
        return self
