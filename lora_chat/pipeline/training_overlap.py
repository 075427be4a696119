"""The digests of a run's training dialogues, and the overlap of evaluation data with them."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from lora_chat.audit.overlap.digests_file import MAX_DIGESTS_BYTES, decode_digests, encode_digests, read_digests
from lora_chat.audit.overlap.find_overlap import EvaluatedItem, find_overlap, find_seen_questions
from lora_chat.audit.overlap.training_digests import DigestCollector, TrainingDigests, merge_digests
from lora_chat.audit.redactor import AUDIT_CODE_PATHS
from lora_chat.data.dataset import DialogueSet
from lora_chat.data.dialogue import Dialogue
from lora_chat.data.storage.results import find_or_compute
from lora_chat.evaluation.overlap import OverlapReport, make_overlap_report
from lora_chat.pipeline.open_adapter import OpenAdapter
from lora_chat.pipeline.prepare import PreparedEvaluation, PreparedRun
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.console import display_path
from lora_chat.system.hashing import digest_code

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_SECONDS = 5.0
_Prepared = TypeVar("_Prepared", bound=PreparedEvaluation)


def keep_training_digests(run: RunFolder, prepared: PreparedRun) -> PreparedRun:
    """Write the digests of the training dialogues into a run, and return its data with its overlap.

    The digests of a parent that the run keeps are included, because the adapter was trained on its dialogues too.
    """
    digests = _find_digests(prepared.train)
    earlier = read_digests(RunFolder(run.parent).training_digests)
    if earlier is not None:
        digests = merge_digests(digests, earlier)
    run.write_bytes(run.training_digests, encode_digests(digests))
    return _with_overlap(prepared, digests)


def with_known_overlap(prepared: PreparedEvaluation, opened: OpenAdapter) -> PreparedEvaluation:
    """Return evaluation data with its overlap with the training data of an adapter, if its run is known."""
    run = opened.training_run
    digests = read_digests(run.training_digests) if run is not None else None
    if digests is None:
        if prepared.is_user_data:
            logger.info(
                f"{opened.name} has no digests of its training dialogues, so it is unknown whether it was trained on "
                "these."
            )
        return prepared
    return _with_overlap(prepared, digests)


def _with_overlap(prepared: _Prepared, digests: TrainingDigests) -> _Prepared:
    """Return evaluation data with its overlap."""
    return replace(prepared, overlap=_find_overlap(prepared, digests))


def _find_overlap(prepared: PreparedEvaluation, digests: TrainingDigests) -> OverlapReport:
    """Return how many of the compared dialogues and questions were trained on."""
    items, locations, row_counts = [], [], []
    for path, line, dialogue, rows in prepared.compared.iter_units():
        items.append(EvaluatedItem(dialogue, rows[0].input_ids if dialogue is None else ()))
        locations.append(f"{display_path(Path(path))}:{line}")
        row_counts.append(len(rows))
    for number, ids in enumerate(prepared.compared.read_blocks(), 1):
        items.append(EvaluatedItem(None, ids))
        locations.append(f"block {number}")
        row_counts.append(1)
    questions = find_seen_questions(digests, [question.question for question in prepared.questions])
    return make_overlap_report(find_overlap(digests, items), locations, questions, row_counts)


def _find_digests(train: DialogueSet) -> TrainingDigests:
    """Return the digests of a training set. They are kept beside its encoded dialogues, because they take long."""
    if train.block_count or not train.units_by_store:
        return _collect_digests(train)
    code = digest_code(*AUDIT_CODE_PATHS)
    content = find_or_compute(
        train.units_by_store, "digests", code, MAX_DIGESTS_BYTES, lambda: encode_digests(_collect_digests(train))
    )
    return decode_digests(content)


def _collect_digests(train: DialogueSet) -> TrainingDigests:
    """Return the digests of a training set, and report progress every few seconds."""
    collector, last_message = DigestCollector(), time.monotonic()
    for number, unit in enumerate(train.read(), 1):
        if isinstance(unit, Dialogue):
            collector.add(unit)
        else:
            collector.add_block(unit)
        if time.monotonic() - last_message > _PROGRESS_INTERVAL_SECONDS:
            last_message = time.monotonic()
            logger.info(f"Keeping digests of the training dialogues: {number:,} of {len(train):,}")
    return collector.collect()
