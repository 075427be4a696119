"""The input and the result of one training, and its rows as a dataset."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lora_chat.config.plan import TrainingPlan
from lora_chat.training.candidate_plans import update_identity
from lora_chat.training.kept_step import KeptStep
from lora_chat.training.reporter_session import ReporterSession

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from lora_chat.data.row_lengths import Numbers
    from lora_chat.runs.checkpoints import CommittedCheckpoint
    from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
    from lora_chat.training.callbacks.nonfinite_guard import DialogueLocator
    from lora_chat.training.progress_bar import ProgressView


class EncodedRow(Protocol):
    """An encoded dialogue: token ids and labels, both (length,), and the number of tokens with loss."""

    @property
    def input_ids(self) -> list[int]: ...
    @property
    def labels(self) -> list[int]: ...
    @property
    def supervised_tokens(self) -> int: ...


def locate_nothing(rows: Sequence[Sequence[int]]) -> Sequence[tuple[str, int]]:
    """Return no locations, because the files of the rows are unknown."""
    return ()


@dataclass(frozen=True)
class TrainingRun:
    """Everything that one training needs: the adapted model, its data, the plan and the paths that it writes to."""

    model: "PeftModel"
    tokenizer: "PreTrainedTokenizerBase"
    train_rows: Sequence[EncodedRow]
    validation_rows: Sequence[EncodedRow]
    plan: TrainingPlan
    metrics_path: Path
    """File that receives one JSON object per step."""
    bfloat16: bool
    """Whether the base computes in bf16 and the trained adapter is rounded to it."""
    float16: bool = False
    """Whether the base computes in fp16 and the loss is scaled; the trained adapter stays in fp32, which PEFT gives an
    adapter in fp16 anyway."""
    has_frozen_start: bool = False
    """Whether the second half of each layer's rank is the negative start of PiSSA or OLoRA, which is not trained."""
    evaluate_each_epoch: bool = False
    evaluate_every_steps: int | None = None
    """Optimizer steps between measurements of the validation set; None measures it at most after each epoch."""
    reporters: ReporterSession = field(default_factory=ReporterSession)
    """The services that receive the metrics."""
    checkpoint_policy: "CheckpointPolicy | None" = None
    """Rules for writing checkpoints; None writes none."""
    locate_dialogues: "DialogueLocator" = locate_nothing
    """Function that finds the dialogues of a failed step in their files."""
    adjustable_settings: Collection[str] = ()
    """Names of training settings that may change if the largest micro-batch does not fit in memory."""
    view: "ProgressView | None" = None
    """Display of the steps; None shows them on stderr."""

    @property
    def on_cpu(self) -> bool:
        """Return whether the model is on a CPU."""
        return bool(self.model.device.type == "cpu")

    @property
    def measures_in_training(self) -> bool:
        """Return whether the validation set is measured during training."""
        return bool(len(self.validation_rows)) and (self.evaluate_each_epoch or self.evaluate_every_steps is not None)

    @property
    def resume_checkpoint(self) -> "CommittedCheckpoint | None":
        """Return the checkpoint from which training continues, if any."""
        return self.checkpoint_policy.resume if self.checkpoint_policy else None

    def with_plan(self, plan: TrainingPlan) -> "TrainingRun":
        """Return the same run with another plan, which its checkpoints also record."""
        if plan == self.plan:
            return self
        policy = self.checkpoint_policy
        if policy is not None:
            policy = replace(policy, identity=update_identity(plan, policy.identity))
        return replace(self, plan=plan, checkpoint_policy=policy)


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of one training."""

    steps: int
    planned_steps: int
    seconds: float
    """Training time in seconds, including the time before a resume."""
    seconds_before_resume: float
    """Training time in seconds up to the checkpoint that was resumed."""
    supervised_tokens: int
    signal_number: int
    """Number of the signal that asked to stop, or 0."""
    kept_step: KeptStep
    """The step whose weights the model has now, and why."""
    is_complete: bool
    """Whether no step is left, or training has stopped early."""
    plan: TrainingPlan
    """The plan that was trained. Its micro-batches may be smaller than requested."""


def measure_lengths(rows: Sequence[EncodedRow]) -> "Numbers":
    """Return the tokens of each row, (rows,); rows on disk have a column of them."""
    import numpy as np

    return rows.lengths if hasattr(rows, "lengths") else np.array([len(row.input_ids) for row in rows], np.int64)


def count_supervised(rows: Sequence[EncodedRow]) -> "Numbers":
    """Return the tokens with loss of each row, (rows,); rows on disk have a column of them."""
    import numpy as np

    return rows.measured.supervised if hasattr(rows, "measured") else np.array([row.supervised_tokens for row in rows])


def make_dataset(rows: Sequence[EncodedRow]) -> "Dataset":
    """Return a dataset with ids and labels only, because another column could steer TRL; rows on disk have one."""
    from datasets import Dataset

    if hasattr(rows, "dataset"):
        return rows.dataset
    return Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})
