"""The part of a recipe that says where dialogues come from and how they are read."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lora_chat.config.base import NonEmptyStr, Seed, StrictModel


class ColumnsSection(StrictModel):
    """Which columns of a table, or keys of an object, hold a question and its answer, or a text."""

    user: NonEmptyStr | None = None
    """What is asked."""
    assistant: NonEmptyStr | None = None
    """What is answered."""
    system: NonEmptyStr | None = None
    """What the assistant is told beforehand."""
    text: NonEmptyStr | None = None
    """Plain text to go on with, instead of question and answer."""

    @model_validator(mode="after")
    def _check_columns(self) -> "ColumnsSection":
        if self.text is None and (self.user is None or self.assistant is None):
            raise ValueError("name `user` and `assistant`, or `text`")
        if self.text is not None and (self.user or self.assistant or self.system):
            raise ValueError("`text` stands alone, without `user`, `assistant` or `system`")
        return self


DataFormat = Literal["messages", "sharegpt", "alpaca", "prompt_completion", "columns", "text"]
Turns = Literal["all", "last"]
BUNDLED_TEMPLATES = ("plain", "chatml")
"""Chat templates of our own."""
Paths = NonEmptyStr | Annotated[tuple[NonEmptyStr, ...], Field(min_length=1)]


class SourceSection(StrictModel):
    """One of several sources, with settings of its own."""

    path: Paths | None = None
    """A file, a folder, a glob, or a list of these."""
    hub: NonEmptyStr | None = None
    """Instead of a path: a data set of the hub, such as `HuggingFaceH4/ultrachat_200k`."""
    subset: NonEmptyStr | None = None
    """Which part of a data set on the hub that has several, as its page calls it."""
    split: NonEmptyStr = "train"
    """Which split of a data set on the hub."""
    revision: NonEmptyStr | None = None
    """Branch, tag or commit on the hub; a commit makes the run repeatable."""
    format: DataFormat | None = None
    """The format of its rows; by default `data.format`."""
    columns: ColumnsSection | None = None
    """For rows with columns of their own names; by default `data.columns`."""
    turns: Turns | None = None
    """Which replies are trained; by default `data.turns`."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How often each of its dialogues is seen in an epoch: 2 is twice, 0.25 is a quarter of them, chosen by seed."""

    @model_validator(mode="after")
    def _check_location(self) -> "SourceSection":
        if (self.path is None) == (self.hub is None):
            raise ValueError("name either `path` or `hub`")
        return self


Sources = NonEmptyStr | SourceSection | Annotated[tuple[NonEmptyStr | SourceSection, ...], Field(min_length=1)]


class DataSection(StrictModel):
    """The dialogues. Relative paths start at the recipe's folder."""

    train: Sources
    """Training dialogues: a file, a folder, a glob, a source with settings of its own, or a list of these. JSON
    lines, a JSON list, CSV, TSV or Parquet, each perhaps in gzip."""
    validation: Sources | None = None
    """Validation dialogues; without them a share of the training dialogues is held out."""
    format: DataFormat | None = None
    """The format of all rows; without it each file is in the format that its first row is in. `text` reads a file
    that is none of the above as plain text, and trains on all of it."""
    columns: ColumnsSection | None = None
    """For rows with columns of their own names."""
    turns: Turns = "all"
    """Which replies of a dialogue are trained: `all`, or the `last` one. A row may say so itself: `"turns": "last"`."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share held out when there is no validation file."""
    validation_limit: Annotated[int, Field(ge=1)] = 1000
    """The most dialogues that are held out so, whatever the share: more make no measure better, and take time."""
    seed: Seed = 0
    """Decides which dialogues are held out, and which part of a source with a weight below 1 is seen."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Longest dialogue in tokens, and length of the blocks of plain text; never longer than the base's positions."""
    over_long: Literal["refuse", "drop", "cut"] = "refuse"
    """What to do with a longer one: stop before training, leave it out, or cut it after the last reply that fits;
    all is counted."""
    skip_bad: Annotated[int, Field(ge=0)] = 0
    """How many faulty lines may be left out before the data is refused."""
    template: NonEmptyStr | None = None
    """Instead of the base's own chat template: `plain`, `chatml`, or a file of Jinja beside the recipe."""
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    """Processes that read and encode."""

    @property
    def train_sources(self) -> tuple[SourceSection, ...]:
        """Every source of training dialogues with all that is set for it."""
        return self._resolve_sources(self.train)

    @property
    def validation_sources(self) -> tuple[SourceSection, ...]:
        """The same of validation dialogues; none if they are held out."""
        return self._resolve_sources(self.validation) if self.validation else ()

    def _resolve_sources(self, sources: Sources) -> tuple[SourceSection, ...]:
        return tuple(self._with_defaults(one) for one in (sources if isinstance(sources, tuple) else (sources,)))

    def _with_defaults(self, source_or_path: NonEmptyStr | SourceSection) -> SourceSection:
        source = SourceSection(path=source_or_path) if isinstance(source_or_path, str) else source_or_path
        has_own_format = source.format or source.columns
        return source.model_copy(
            update={
                "format": source.format if has_own_format else self.format,
                "columns": source.columns if has_own_format else self.columns,
                "turns": source.turns or self.turns,
            }
        )
