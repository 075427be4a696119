"""The data of a plan: found, read, encoded and split. Only the tokenizer of the base is needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_chat.audit.redactor import Redactor
from lora_chat.config.audit import FindingKind
from lora_chat.config.data import DataSection
from lora_chat.config.plan import Plan
from lora_chat.data.dataset import DialogueSet, build_empty_set, build_full_set, build_weighted_set, split_by_share
from lora_chat.data.parsing.system_message import ADDED_NOTE
from lora_chat.data.sources import EncodedSource, LocalSource, check_sources, find_sources, open_sources
from lora_chat.data.statistics import DataStatistics, compute_statistics
from lora_chat.evaluation.general.items import GeneralItem
from lora_chat.evaluation.questions import Question, read_questions
from lora_chat.pipeline.general_items import read_general_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class DataFiles:
    """The files and questions of a plan, found but not read."""

    train: Sequence[LocalSource]
    validation: Sequence[LocalSource]
    test: Sequence[LocalSource]
    questions: Sequence[Question]
    general: Sequence[GeneralItem]
    """Items of the user's file; none for the shipped set."""
    section: DataSection
    redacted: frozenset[FindingKind]
    """Kinds of findings that are redacted, and that no message may show."""

    def check(self) -> None:
        """Raise DataError if rows are not dialogues."""
        redactor = Redactor(self.redacted)
        for sources in (self.train, self.validation, self.test):
            check_sources(
                sources, self.section, lambda text: redactor.transform_text(text)[0] if self.redacted else text
            )


@dataclass(frozen=True)
class LoadedData:
    """The encoded data of a run."""

    train: DialogueSet
    validation: DialogueSet
    test: DialogueSet
    statistics: DataStatistics
    system: str | None
    """System message with which all dialogues begin, if any."""


def find_data_files(plan: Plan) -> DataFiles:
    """Find the files of a plan and read its questions. Raise DataError if a file is missing."""
    data = plan.data
    return DataFiles(
        find_sources(data.train_sources, offered_splits=_list_unused_splits(data), streaming=data.streaming),
        find_sources(data.validation_sources, "validation", streaming=data.streaming),
        find_sources(data.test_sources, "test", streaming=data.streaming),
        _read_redacted_questions(plan),
        read_general_file(plan.evaluation.general, plan.audit.redacted),
        data,
        plan.audit.redacted,
    )


def _list_unused_splits(data: DataSection) -> list[str]:
    """Return the splits that a folder of training data may offer, because the recipe names no files for them."""
    return [
        name
        for name, is_named in (("validation", data.validation is not None), ("test", data.has_test))
        if not is_named
    ]


def _read_redacted_questions(plan: Plan) -> list[Question]:
    """Return the questions of a plan, redacted like the dialogues."""
    questions = read_questions(plan.evaluation.questions) if plan.evaluation.questions else []
    if not plan.audit.redacted:
        return questions
    redactor = Redactor(plan.audit.redacted)
    cleaned = []
    for question in questions:
        text, *accept = redactor.transform_texts([question.question, *question.accept])
        cleaned.append(replace(question, question=text, accept=tuple(accept)))
    return cleaned


def read_data(
    plan: Plan,
    files: DataFiles,
    tokenizer: "PreTrainedTokenizerBase",
    stop_ids: Sequence[int],
    positions: int | None,
) -> LoadedData:
    """Read, redact if requested, encode and split. Raise DataError for every error that would waste a run."""
    data = plan.data
    redactor = Redactor(plan.audit.redacted) if plan.audit.redacted else None
    common = (data, tokenizer, tuple(stop_ids), positions, redactor)
    opened = open_sources(files.train, *common)
    validation_sources, test_sources = open_sources(files.validation, *common), open_sources(files.test, *common)
    train, validation, test = split_data(plan, opened, validation_sources, test_sources)
    limit = min(data.max_length, positions or data.max_length)
    statistics = compute_statistics(opened, train, validation, test, plan.training.micro_batch_size, limit)
    return LoadedData(train, validation, test, statistics, find_system_message(opened, redactor))


def split_data(
    plan: Plan,
    train: Sequence[EncodedSource],
    validation: Sequence[EncodedSource],
    test: Sequence[EncodedSource] = (),
) -> tuple[DialogueSet, DialogueSet, DialogueSet]:
    """Return the training, validation and test set."""
    data = plan.data
    stores, weights = [source.store for source in train], [source.weight for source in train]
    share, test_share = 0.0 if validation else data.validation_share, 0.0 if test else data.test_share
    if share or test_share:
        sets = split_by_share(stores, weights, share, data.seed, data.validation_limit, test_share)
    else:
        sets = build_weighted_set(stores, weights, data.seed), build_empty_set(), build_empty_set()
    return (
        sets[0],
        build_full_set([source.store for source in validation]) if validation else sets[1],
        build_full_set([source.store for source in test]) if test else sets[2],
    )


def find_system_message(sources: Sequence[EncodedSource], redactor: Redactor | None) -> str | None:
    """Return the system message with which chat begins: the one that all dialogues share, or the recipe's.

    The recipe's is used if dialogues with others remain, because a prompt without any was not trained then.
    """
    system_messages = {system for source in sources for system in source.store.ledger.systems}
    if len(system_messages) == 1:
        return system_messages.pop()
    configured = {source.local_source.reading_options.system for source in sources}
    text = configured.pop() if len(configured) == 1 else None
    if text is None or not any(source.store.ledger.notes.get(ADDED_NOTE) for source in sources):
        return None
    return redactor.transform_text(text)[0] if redactor else text
