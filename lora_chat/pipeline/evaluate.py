"""The comparison of an existing adapter with its base, on held-out dialogues or on files of the user."""

from lora_chat.config.recipe import EvaluationSection
from lora_chat.errors import UsageError
from lora_chat.models.adapter_files import is_adapter_folder
from lora_chat.pipeline.compare import compare_models, compare_run
from lora_chat.pipeline.held_out import EvaluationFiles, prepare_evaluation
from lora_chat.pipeline.open_adapter import TrustOptions, find_hub_name, open_adapter
from lora_chat.sharing.parcel import is_parcel
from lora_chat.system.user_path import expand_user_path


def evaluate_adapter(source: str, evaluation_files: EvaluationFiles, trust: TrustOptions) -> dict[str, object]:
    """Compare base and adapted model: a run on its held-out data, any adapter on the user's files."""
    if evaluation_files.data is None and (
        is_parcel(expand_user_path(source)) or is_adapter_folder(expand_user_path(source)) or find_hub_name(source)
    ):
        raise UsageError(f"{source} contains no dialogues for an evaluation. Fix: give some with --data FILE.")
    if evaluation_files.questions is not None and evaluation_files.data is None:
        raise UsageError("--questions belongs to --data: the held-out data of a run has its own questions.")
    opened = open_adapter(source, trust)
    prepared = prepare_evaluation(opened, evaluation_files)
    model = opened.adapter.load(opened.precision)
    if opened.run is not None and evaluation_files.data is None:
        report = compare_run(model, prepared, opened.run.read_plan().evaluation, opened.run)
    else:
        report = compare_models(model, prepared, EvaluationSection())
    return {
        "run" if opened.run else "adapter": str(opened.run.path if opened.run else source),
        **report.figures,
    }
