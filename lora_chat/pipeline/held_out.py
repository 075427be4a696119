"""The dialogues and questions that evaluate an existing adapter."""

from dataclasses import dataclass, replace

from lora_chat.pipeline.open_adapter import OpenAdapter
from lora_chat.pipeline.prepare import PreparedEvaluation, prepare_evaluation_files, prepare_held_out


@dataclass(frozen=True)
class EvaluationFiles:
    """The user's files of dialogues and questions for an evaluation."""

    data: str | None = None
    questions: str | None = None
    general: str | None = None
    """`auto`, `all`, `off` or a file of general items; None repeats those of a run."""


def prepare_evaluation(opened: OpenAdapter, evaluation_files: EvaluationFiles) -> PreparedEvaluation:
    """Return the user's evaluation data, or the held-out data of a run. Raise DataError for errors in it."""
    if opened.run is not None and evaluation_files.data is None:
        return prepare_held_out(opened.adapter, opened.run.read_plan(), opened.run)
    prepared = prepare_evaluation_files(
        opened.adapter,
        [evaluation_files.data] if evaluation_files.data else [],
        evaluation_files.questions,
    )
    return replace(prepared, is_user_data=True)
