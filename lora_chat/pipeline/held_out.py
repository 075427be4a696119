"""What can be done with a finished run, a parcel or an adapter: measure it again, merge it."""

from dataclasses import dataclass

from lora_chat.pipeline.open_adapter import OpenAdapter
from lora_chat.pipeline.prepare import PreparedEvaluation, prepare_evaluation_files, prepare_held_out


@dataclass(frozen=True)
class EvaluationFiles:
    """Dialogues and questions of one's own to measure with."""

    data: str | None = None
    questions: str | None = None


def prepare_evaluation(opened: OpenAdapter, evaluation_files: EvaluationFiles) -> PreparedEvaluation:
    """A run's held-out dialogues, or those of one's own. Raises DataError for what is wrong with them."""
    if opened.run is not None and evaluation_files.data is None:
        return prepare_held_out(opened.adapter, opened.run.read_plan(), opened.run)
    return prepare_evaluation_files(
        opened.adapter,
        [evaluation_files.data] if evaluation_files.data else [],
        evaluation_files.questions,
    )
