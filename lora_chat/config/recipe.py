"""The recipe: every setting of a run, with its default, its limits and its description."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, field_validator, model_validator
from typing_extensions import Self

# Callers import every section from this module.
from lora_chat.config.adapter_section import AdapterSection as AdapterSection
from lora_chat.config.audit import AuditSection
from lora_chat.config.base import NonEmptyStr, StrictModel, check_unique
from lora_chat.config.data import DataSection
from lora_chat.config.generation_section import GenerationSection
from lora_chat.config.metric_choice import MetricChoice, NumberPattern
from lora_chat.config.training_section import TrainingSection as TrainingSection
from lora_chat.system.device_choice import DEVICE_PATTERN, explain_unknown_device

GENERAL_CHOICES = ("auto", "all", "off")
"""Values of `evaluation.general` that are not files."""


def _read_general(value: object) -> object:
    """Return the setting of general items; YAML reads `off` and `on` as booleans. Raise ValueError for `on`."""
    if value is True:
        raise ValueError(f"must be {', '.join(GENERAL_CHOICES)} or a file")
    return "off" if value is False else value


GeneralSetting = Annotated[NonEmptyStr, BeforeValidator(_read_general)]
"""The general items that are asked."""
_WINDOWS_DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Pattern of names that Windows reserves. Run folders are named NAME-1, but parcels and exports use the name itself."""


AUTO_REPLIES = 100
"""Largest number of held-out replies with `evaluation.replies: auto`."""


MAX_RECITAL_REPLIES = 1000
_MIN_RECITAL_REPLIES, _AUTO_RECITAL_REPLIES = 20, 100
"""Fewest and most replies of `evaluation.recital: auto`."""
_MIN_RECITAL_WEIGHTS = 10_000_000
"""Smallest base, in weights, whose recital is measured by default."""
ReporterName = Literal["tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "swanlab"]


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
    shard: Literal["auto"] | bool = "auto"
    """Whether several processes shard the decoder layers of the base, so that each card has a part of them (FSDP2,
    docs/several-gpus.md). `auto` does so if the whole base does not fit one card. Not for `quantization.mode: 8bit`.
    The result is the same, and a run can be resumed with the other choice."""

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

    each_epoch: Literal["auto"] | bool = "auto"
    """Whether the validation set is measured after every epoch too, from which `training.keep` chooses. `auto` does so
    if it is planned to take less than 10 % of the training time, if there are at least two epochs and 8 validation rows
    to choose by, and if `every_steps` is not set."""
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between measurements of the validation set. The last step is measured too."""
    samples: Annotated[int, Field(ge=0)] = 3
    """Number of validation prompts that both models answer, printed side by side."""
    replies: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Number of held-out prompts that both models answer for the metrics of replies. `auto` is up to 100, as many as
    take a tenth of the planned time of training. Only the first `samples` are printed."""
    metrics: MetricChoice = "auto"
    """Metrics of the replies, beside the losses and the questions. `auto` chooses by the held-out data and says which.
    A list has names of the table in docs/evaluation.md; the first one decides the verdict. With `auto`
    it is by right or wrong replies, and otherwise by the validation loss."""
    number_pattern: NumberPattern | None = None
    """Regular expression with one group for `numeric_match`, such as `answer is (.+)`. The last match in the reply is
    compared with the last match in the reference. By default it is the last number, after `####` if there is one."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Maximum length of a reply in a comparison, in tokens."""
    generation: GenerationSection = GenerationSection()
    """The choice of each next token of these replies; by default the most probable one."""
    recital: Literal["auto", "off"] | Annotated[int, Field(ge=0, le=MAX_RECITAL_REPLIES)] = "auto"
    """Number of training replies that both models are asked to complete word for word from their first tokens, at the
    end of training. `auto` is one for ten trained dialogues, 20 to 100, and none for bases below 10 million weights,
    which are made for tests. `off` or 0 measures nothing."""
    questions: NonEmptyStr | None = None
    """File of questions as JSON lines with `question` and `accept`. A right answer contains one of the strings in
    `accept`."""
    general: GeneralSetting = "auto"
    """General items that base and adapted model answer, to measure what the base could do and the adapted model cannot
    (docs/evaluation.md). `auto` asks at least 40 items of the shipped set, and more of them in at most about 10 % of
    the planned training time; a base of less than 10 million weights, such as `tiny-random`, is asked none. `all` asks
    the whole set, `off` none; a file of JSON lines replaces the set: items in its format, or questions with `question`
    and `accept`."""

    @model_validator(mode="after")
    def _check_pattern_is_used(self) -> Self:
        if self.number_pattern is not None and self.metrics != "auto" and "numeric_match" not in self.metrics:
            raise ValueError("number_pattern belongs to numeric_match, which metrics does not list")
        return self

    @field_validator("recital", mode="before")
    @classmethod
    def _read_off(cls, value: object) -> object:
        """Return `off` for the word that YAML 1.1 reads as false."""
        return "off" if value is False else value

    def count_recital_replies(self, weights: int, trained_dialogues: int) -> int:
        """Return the number of replies for a base of this many weights that was trained on this many dialogues."""
        if self.recital == "off" or (self.recital == "auto" and weights < _MIN_RECITAL_WEIGHTS):
            return 0
        if self.recital == "auto":
            return max(_MIN_RECITAL_REPLIES, min(_AUTO_RECITAL_REPLIES, trained_dialogues // 10))
        return self.recital

    @property
    def reply_count(self) -> int:
        """Return the number of replies, with `auto` as its largest value."""
        return AUTO_REPLIES if self.replies == "auto" else self.replies

    @property
    def measures_in_training(self) -> bool:
        """Return whether the validation set is measured during training; `auto` counts after it is resolved."""
        return self.each_epoch is True or self.every_steps is not None


class OutputSection(StrictModel):
    """The location and the name of the run folder."""

    directory: NonEmptyStr = "runs"
    """Folder of the run folders. A relative path starts at the working directory."""
    name: Annotated[str, StringConstraints(pattern=r"^[^\W_][\w.-]*$", max_length=200)] | None = None
    """First part of the name of the run folder. By default it is the file name of the recipe."""
    tensorboard: bool = False
    """Whether TensorBoard events are written too (`pip install tensorboard`), as with `report_to: [tensorboard]`."""
    report_to: Annotated[tuple[ReporterName, ...], Field(max_length=6), AfterValidator(check_unique)] = ()
    """Services that receive the metrics of each step and the settings of training, and no text of dialogues:
    `tensorboard`, `wandb`, `mlflow`, `trackio`, `comet_ml` and `swanlab`; each needs its package. All but `wandb` write
    into the run folder, `mlflow` and `trackio` unless the environment names a server; `wandb` needs a login or
    `WANDB_MODE=offline`, and writes beside the run."""

    @property
    def reporters(self) -> tuple[ReporterName, ...]:
        """Return the services that receive the metrics; `tensorboard: true` adds TensorBoard."""
        adds_tensorboard = self.tensorboard and "tensorboard" not in self.report_to
        return ("tensorboard", *self.report_to) if adds_tensorboard else self.report_to

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        if name and _WINDOWS_DEVICE_NAME.fullmatch(name):
            raise ValueError("Windows reserves this name for a device")
        return name


class Recipe(StrictModel):
    """The settings of a fine-tuning run, one section each. Read one with `Recipe.read` or `Recipe.from_dict`."""

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

    @classmethod
    def read(cls, recipe: str | Path, settings: Mapping[str, object] | None = None) -> "Recipe":
        """Read a recipe file, or a recipe of lora_chat by its name, with `{"section.key": value}` settings applied.

        Paths in the file start at its folder, paths in settings at the working directory. Raises RecipeError.
        """
        from lora_chat.config.load import format_setting, read_recipe

        return read_recipe(recipe, [format_setting(name, value) for name, value in (settings or {}).items()])

    @classmethod
    def from_dict(cls, sections: Mapping[str, object]) -> "Recipe":
        """Return the recipe of nested values, such as `{"data": {"train": "my.jsonl"}}`. Raises RecipeError.

        Relative paths start at the working directory. The run is named `run` unless `output.name` is set.
        """
        from lora_chat.config.load import make_recipe

        return make_recipe(sections)
