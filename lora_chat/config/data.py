"""The `data` section of a recipe: the files with dialogues, and how they are read."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lora_chat.config.base import NonEmptyStr, Seed, StrictModel, UniqueTokens
from lora_chat.config.columns import ColumnsSection
from lora_chat.config.data_loss import Loss, Turns, check_loss, resolve_loss
from lora_chat.config.system_message import SystemSection, check_system_text

DataFormat = Literal["messages", "sharegpt", "alpaca", "prompt_completion", "columns", "text"]
TurnOrder = Literal["refuse", "join"]
BUNDLED_TEMPLATES = ("plain", "chatml", "plain_tools", "chatml_tools")
"""Names of the chat templates in `data/encoding/bundled_templates.py`."""
SystemMessage = Annotated[NonEmptyStr, AfterValidator(check_system_text)] | SystemSection
RowLimit = Annotated[int, Field(ge=1)]
ThinkingSetting = Annotated[
    Literal["auto", "on", "off"],
    BeforeValidator(lambda value: ("on" if value else "off") if isinstance(value, bool) else value),
]
"""Position of the switch for thoughts; YAML reads `on` and `off` as booleans."""
KeyNames = NonEmptyStr | Annotated[tuple[NonEmptyStr, ...], Field(min_length=1, max_length=100)]
Paths = NonEmptyStr | Annotated[tuple[NonEmptyStr, ...], Field(min_length=1)]


class SourceSection(StrictModel):
    """One of several sources of dialogues, with its own settings."""

    path: Paths | None = None
    """File, folder or glob, or a list of these."""
    hub: NonEmptyStr | None = None
    """Data set on the hub, instead of a path, such as `HuggingFaceH4/ultrachat_200k`."""
    subset: NonEmptyStr | None = None
    """Name of the subset, for a data set on the hub, or a local copy of one, that has several."""
    split: NonEmptyStr = "train"
    """Name of the split of a data set on the hub, or of a folder with splits, such as train.jsonl beside test.jsonl.
    For a folder in `data.validation` it is `validation`, and in `data.test` it is `test`."""
    revision: NonEmptyStr | None = None
    """Branch, tag or commit on the hub. A commit makes the run repeatable."""
    format: DataFormat | None = None
    """Format of the rows. By default it is `data.format`."""
    columns: ColumnsSection | None = None
    """Names of the columns. By default they are those in `data.columns`."""
    turns: Turns | None = None
    """Replies that are trained. By default it is `data.turns`."""
    loss: Loss | None = None
    """Tokens that carry loss. By default it is `data.loss`."""
    turn_order: TurnOrder | None = None
    """Action for several messages of one role in a row. By default it is `data.turn_order`."""
    drop_unwanted: bool | None = None
    """Whether unwanted replies are left out. By default it is `data.drop_unwanted`."""
    ignore_keys: KeyNames | None = None
    """Keys that are left out although they carry meaning. By default they are those in `data.ignore_keys`."""
    system: SystemMessage | None = None
    """System message. By default it is `data.system`."""
    limit: RowLimit | None = None
    """Number of rows that are read. By default it is `data.limit`."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Number of times that each dialogue is seen in an epoch: 2 is twice, 0.25 is a quarter of them, chosen by seed."""

    @model_validator(mode="after")
    def _check_location(self) -> "SourceSection":
        if (self.path is None) == (self.hub is None):
            raise ValueError("name either `path` or `hub`")
        check_loss(self.turns, self.loss)
        return self


Sources = NonEmptyStr | SourceSection | Annotated[tuple[NonEmptyStr | SourceSection, ...], Field(min_length=1)]


class DataSection(StrictModel):
    """The dialogues. Relative paths start at the folder of the recipe."""

    train: Sources
    """Training dialogues: a file, a folder, a glob, a source with its own settings, or a list of these. Files are JSON
    lines, other JSON, tables (CSV and others), Parquet or Arrow; all but the last two may be compressed."""
    validation: Sources | None = None
    """Validation dialogues. Without them a share of the training dialogues becomes the validation set."""
    test: Sources | None = None
    """Test dialogues, which neither training nor the choice of a checkpoint sees. The comparison of base and adapted
    model is measured on them. Without them it is measured on the validation set."""
    format: DataFormat | None = None
    """Format of all rows. By default the first row of each file decides. `text` reads a file in none of these formats
    as plain text, and trains on all of it."""
    columns: ColumnsSection | None = None
    """Names of the columns, for rows in none of the other formats."""
    turns: Turns = "all"
    """Replies of a dialogue that are trained: `all`, or only the `last`. A row can choose with `"turns": "last"`."""
    loss: Loss = "replies"
    """Tokens that carry loss: the `replies`, the `last` reply (as `turns: last`), or `all` tokens of a row, with the
    prompts and the text of the template. A row can choose with `"loss": "all"`."""
    drop_unwanted: bool = False
    """Whether unwanted replies of preference data are left out: rows marked as unwanted (`label`, `kto_tag` and others
    with the value false, or a weight of 0), which are counted, and the rejected reply of each pair, so that the chosen
    reply is trained. By default such rows are refused."""
    ignore_keys: KeyNames | None = None
    """Names of keys of rows, messages and parts that are left out although they carry meaning, such as `images`. They
    are counted as not used. By default a row with such a key is refused."""
    turn_order: TurnOrder = "refuse"
    """Action for several messages of one role in a row: `refuse` leaves them unchanged, and they are refused if the
    chat template does not write them; `join` makes them one message with a blank line between their texts."""
    system: SystemMessage | None = None
    """System message of all dialogues that have none, in training, validation, test and chat: a text, or a section
    with `text` or `file`, and with `replace: true` to replace other system messages too. Plain text has none."""
    limit: RowLimit | None = None
    """Number of rows that are read of each source: the first ones of its files in their order, faulty ones included.
    The rest of the files is not read."""
    streaming: bool = False
    """Whether data sets on the hub are read over the network in parts, without storing their files. Only the encoded
    dialogues are stored, reading stops at `limit`, and an interrupted start continues where it stopped. Parquet, JSON
    lines, CSV and text are streamed, JSON lines, CSV and text also as gzip."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training dialogues that becomes the validation set if there is no validation file. With 0 there is
    no validation set: all dialogues are trained on, and the loss is not compared with the base's."""
    validation_limit: Annotated[int, Field(ge=1)] = 1000
    """Maximum number of dialogues that `validation_share` takes, and `test_share` too. More take time and do not make
    the measured loss much more precise."""
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training dialogues that becomes the test set if there is no test file. The validation set stays the
    same, because the test set is taken from the rest. With 0 there is no test set."""
    seed: Seed = 0
    """Seed that chooses the validation and test dialogues, and the dialogues of a source with a weight below 1."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Maximum length of a dialogue, in tokens, and length of the blocks of plain text. It never exceeds the context
    window of the base."""
    over_long: Literal["refuse", "drop", "cut"] = "refuse"
    """Action for a longer dialogue: `refuse` to train, `drop` it, or `cut` it after the last reply that fits. All are
    counted."""
    skip_bad: Annotated[int, Field(ge=0)] = 0
    """Maximum number of faulty lines that are skipped. With more the data is refused."""
    rendered_chats: Literal["refuse", "text"] = "refuse"
    """Action for plain texts that are chats with the marks of a chat template, such as `<|im_start|>user`, if they are
    a tenth of a source or more: `refuse` them, or train on them as `text`. Bring such chats as `messages` instead."""
    template: NonEmptyStr | None = None
    """Chat template that replaces the base's template: `plain`, `chatml`, or a Jinja file beside the recipe.
    `plain_tools` and `chatml_tools` also write tools, calls and results, for bases whose template leaves them out."""
    thinking: ThinkingSetting | None = "auto"
    """Thoughts, for chat templates with a switch such as Qwen3's `enable_thinking`. `auto` trains each reply with
    thoughts after the prompt with the switch on, and each one without after the prompt with it off. If all replies are
    of one kind, that position becomes the default of chat, evaluation, merged models and exports. `on` and `off` set
    the switch for all replies; an empty block of thoughts that the template inserts carries no loss. `null` leaves the
    template's own default, as earlier versions did."""
    keep_tokens: UniqueTokens | None = None
    """Tokens of the base's tokenizer that stay tokens when they occur in message text, such as [<order>, </order>], in
    training, chat and every check. Other special tokens, and added tokens of chat markup, are written as plain
    characters, so that content cannot open a turn.
    Tokens that the chat template writes, or that end a reply, cannot be kept."""
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    """Number of processes that read and encode the data."""

    @model_validator(mode="after")
    def _check_loss(self) -> "DataSection":
        # A validator before the fields would make pydantic refuse lists in JSON, such as those of a stored plan.
        if self.loss == "last" and "turns" not in self.model_fields_set:
            self.__dict__["turns"] = "last"
        check_loss(self.turns, self.loss)
        return self

    @model_validator(mode="after")
    def _check_streaming(self) -> "DataSection":
        sources = (*self.train_sources, *self.validation_sources, *self.test_sources)
        if self.streaming and not any(source.hub for source in sources):
            raise ValueError(
                "streaming has no effect, because no source is on the hub, and local files are always read in parts. "
                "Fix: remove it, or name a data set with `hub`"
            )
        return self

    @model_validator(mode="after")
    def _check_test(self) -> "DataSection":
        if self.test is not None and self.test_share > 0:
            raise ValueError(
                "test and test_share both choose a test set. Fix: keep one of them, or --set data.test_share=0"
            )
        return self

    @property
    def has_validation(self) -> bool:
        """Return whether there is a validation set."""
        return self.validation is not None or self.validation_share > 0

    @property
    def has_test(self) -> bool:
        """Return whether there is a test set."""
        return self.test is not None or self.test_share > 0

    @property
    def train_sources(self) -> tuple[SourceSection, ...]:
        """Return the sources of training dialogues, each with all its settings."""
        return self._resolve_sources(self.train)

    @property
    def validation_sources(self) -> tuple[SourceSection, ...]:
        """Return the sources of validation dialogues; empty if they come from the training dialogues."""
        return self._resolve_sources(self.validation) if self.validation else ()

    @property
    def test_sources(self) -> tuple[SourceSection, ...]:
        """Return the sources of test dialogues; empty if none exist, or if a share of training is the test set."""
        return self._resolve_sources(self.test) if self.test else ()

    def _resolve_sources(self, sources: Sources) -> tuple[SourceSection, ...]:
        return tuple(self._with_defaults(source) for source in (sources if isinstance(sources, tuple) else (sources,)))

    def _with_defaults(self, source_or_path: NonEmptyStr | SourceSection) -> SourceSection:
        source = SourceSection(path=source_or_path) if isinstance(source_or_path, str) else source_or_path
        has_own_format = source.format or source.columns
        turns, loss = resolve_loss(source.turns, source.loss, self.turns, self.loss)
        return source.model_copy(
            update={
                "format": source.format if has_own_format else self.format,
                "columns": source.columns if has_own_format else self.columns,
                "turns": turns,
                "loss": loss,
                "turn_order": source.turn_order or self.turn_order,
                "drop_unwanted": self.drop_unwanted if source.drop_unwanted is None else source.drop_unwanted,
                "ignore_keys": source.ignore_keys or self.ignore_keys,
                "system": source.system or self.system,
                "limit": source.limit or self.limit,
            }
        )


def as_key_names(names: KeyNames | None) -> tuple[str, ...]:
    """Return the names of keys as a tuple."""
    return (names,) if isinstance(names, str) else names or ()
