"""The section `training` of a recipe."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from lora_chat.config.base import Seed, StrictModel
from lora_chat.config.sizes import SIZE_PATTERN


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
