"""The data that a plan names, found, read, encoded and split; of the base it needs the tokenizer alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_chat.audit.redactor import Redactor
from lora_chat.config.audit import Kind
from lora_chat.config.plan import Plan
from lora_chat.data.dataset import DialogueSet, all_of, split_by_share, weighted
from lora_chat.data.sources import FoundSource, OpenedSource, check_sources, find_sources, open_sources
from lora_chat.data.statistics import Account, make_account
from lora_chat.evaluation.questions import Question, read_questions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class DataFiles:
    """What a plan names, found but not read."""

    train: Sequence[FoundSource]
    validation: Sequence[FoundSource]
    questions: Sequence[Question]
    skip_bad: int
    redacted: frozenset[Kind]
    """The kinds that no message shows."""

    def check(self) -> None:
        """Raise DataError for rows that are no dialogues."""
        redactor = Redactor(self.redacted)
        for sources in (self.train, self.validation):
            check_sources(sources, self.skip_bad, lambda text: redactor.text(text)[0] if self.redacted else text)


@dataclass(frozen=True)
class ReadData:
    """Everything encoded."""

    train: DialogueSet
    validation: DialogueSet
    account: Account
    system: str | None
    """The system message that all dialogues begin with."""


def find_files(plan: Plan, notice: Callable[[str], None]) -> DataFiles:
    """Raises DataError for what is not there."""
    data = plan.data
    return DataFiles(
        find_sources(data.train_sources, notice),
        find_sources(data.validation_sources, notice),
        _find_questions(plan),
        data.skip_bad,
        plan.audit.redacted,
    )


def _find_questions(plan: Plan) -> list[Question]:
    """Return the questions as they are asked and kept: redacted like the dialogues."""
    found = read_questions(plan.evaluation.questions) if plan.evaluation.questions else []
    if not plan.audit.redacted:
        return found
    redactor = Redactor(plan.audit.redacted)
    return [
        replace(one, question=redactor.text(one.question)[0], accept=tuple(redactor.text(a)[0] for a in one.accept))
        for one in found
    ]


def read_data(
    plan: Plan,
    files: DataFiles,
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    positions: int | None,
    notice: Callable[[str], None],
) -> ReadData:
    """Read, redact where that is asked for, encode and split; raises DataError for whatever would waste a run."""
    data = plan.data
    redactor = Redactor(plan.audit.redacted) if plan.audit.redacted else None
    common = (data, tokenizer, tuple(stop_ids), positions, notice, redactor)
    opened = open_sources(files.train, *common)
    train, validation = split(plan, opened, open_sources(files.validation, *common))
    limit = min(data.max_length, positions or data.max_length)
    account = make_account(opened, train, validation, plan.training.micro_batch_size, limit)
    return ReadData(train, validation, account, shared_system(opened))


def split(
    plan: Plan, train: Sequence[OpenedSource], validation: Sequence[OpenedSource]
) -> tuple[DialogueSet, DialogueSet]:
    """What is trained and what is held out."""
    data = plan.data
    stores, weights = [source.store for source in train], [source.weight for source in train]
    if validation:
        return weighted(stores, weights, data.seed), all_of([source.store for source in validation])
    return split_by_share(stores, weights, data.validation_share, data.seed, data.validation_limit)


def shared_system(sources: Sequence[OpenedSource]) -> str | None:
    """The system message that all dialogues begin with; chat then begins with it too."""
    heads = {system for source in sources for system in source.store.ledger.systems}
    return heads.pop() if len(heads) == 1 else None
