"""The comparison of an existing adapter with its base, on held-out dialogues or on files of the user."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lora_chat.config.load import change_evaluation
from lora_chat.config.plan import PrecisionPlan
from lora_chat.config.recipe import EvaluationSection
from lora_chat.errors import IntegrityError, LoraChatError, UsageError, first_line
from lora_chat.evaluation.comparison_report import ComparisonReport
from lora_chat.evaluation.generations import GenerationsReport
from lora_chat.evaluation.metrics import METRICS, MetricFigures
from lora_chat.evaluation.own_metric import OwnMetric, load_own_metrics, report_own_metrics
from lora_chat.evaluation.reply_items import read_reply_items
from lora_chat.evaluation.verdict import Verdict
from lora_chat.models.adapter_files import is_adapter_folder
from lora_chat.models.base_model import load_tokenizer
from lora_chat.models.identity import compute_identity
from lora_chat.pipeline.check_metrics import check_listed_metrics
from lora_chat.pipeline.compare import compare_models, compare_run
from lora_chat.pipeline.compare_generations import Measured, add_original_base, measure_generations, report_generations
from lora_chat.pipeline.general_items import choose_evaluation_set
from lora_chat.pipeline.held_out import EvaluationFiles, prepare_evaluation
from lora_chat.pipeline.known_parent import find_known_parent
from lora_chat.pipeline.measure_recital import read_stored_recital
from lora_chat.pipeline.open_adapter import TrustOptions, find_adapter_base, find_hub_name, open_adapter
from lora_chat.pipeline.parent import Parent
from lora_chat.pipeline.prepare import PreparedEvaluation
from lora_chat.pipeline.report_runs import try_write_report
from lora_chat.pipeline.training_overlap import with_known_overlap
from lora_chat.sharing.parcel import is_parcel
from lora_chat.system.user_path import expand_user_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """The comparison of an existing adapter with its base."""

    source: str
    """Path of the run, or the adapter that was given."""
    is_run: bool
    report: ComparisonReport
    """All results: figures, verdict, samples, answers and scores of single replies."""
    own_metrics: Mapping[str, object] | None = None
    """Figures of the user's own metrics, by their names."""
    generations: GenerationsReport | None = None
    """Comparison of base, parent and child, for an adapter that was trained on from another."""

    @property
    def verdict(self) -> Verdict:
        """Return whether the adapted model is better than its base."""
        return self.report.verdict

    @property
    def figures(self) -> Mapping[str, MetricFigures]:
        """Return the figures of every metric that has data, by its name."""
        return self.report.figures

    def as_dict(self) -> dict[str, object]:
        """Return the result for JSON."""
        generations = self.generations.figures if self.generations else None
        more = {"own_metrics": self.own_metrics, "generations": generations}
        return {
            "run" if self.is_run else "adapter": self.source,
            **self.report.result_fields,
            **{name: value for name, value in more.items() if value is not None},
        }


def evaluate_adapter(
    source: str,
    evaluation_files: EvaluationFiles,
    trust: TrustOptions,
    parent_source: str | None = None,
    own_metrics: Sequence[str] = (),
    changes: Sequence[str] = (),
) -> EvaluationResult:
    """Compare base and adapted model: a run on its held-out data, any adapter on the user's files.

    An adapter with a lineage is compared with its parent, too: the copy in its run, or `parent_source`. `own_metrics`
    are FILE:FUNCTION, whose code runs. Their figures are shown, but do not enter a run. Nor does a comparison with
    `changes`, which are `evaluation.key=value` settings of replies.
    """
    change_evaluation(EvaluationSection(), changes)  # refuses settings before anything is opened
    asks_general = evaluation_files.general not in (None, "off")
    if (
        evaluation_files.data is None
        and not asks_general
        and (
            is_parcel(expand_user_path(source)) or is_adapter_folder(expand_user_path(source)) or find_hub_name(source)
        )
    ):
        raise UsageError(f"{source} contains no dialogues for an evaluation. Fix: give some with --data FILE.")
    if evaluation_files.questions is not None and evaluation_files.data is None:
        raise UsageError("--questions belongs to --data: the held-out data of a run has its own questions.")
    own = load_own_metrics(own_metrics, [metric.name for metric in METRICS])
    opened = open_adapter(source, trust)
    parent = find_known_parent(opened, parent_source)
    prepared = prepare_evaluation(opened, evaluation_files)
    general = choose_evaluation_set(evaluation_files.general, opened.run, prepared.base, prepared.tokenizer)
    prepared = replace(prepared, general=general)
    if not len(prepared.compared) and not prepared.questions and general is None:
        raise UsageError(
            f"{source} has no held-out dialogues (data.validation_share: 0) and no questions. Fix: give some with "
            "--data FILE."
        )
    prepared = with_known_overlap(prepared, opened)
    settings, run = EvaluationSection(), None
    if opened.run is not None and evaluation_files.data is None:
        run, settings = None if changes else opened.run, opened.run.read_plan().evaluation
    settings = change_evaluation(settings, changes) if changes else settings
    check_listed_metrics(prepared, settings)
    if own:
        _try_own_metrics(own, prepared, settings)
    model = opened.adapter.load(opened.precision)
    if run is not None:
        report = compare_run(model, prepared, settings, run, read_stored_recital(run))
    else:
        report = compare_models(model, prepared, settings)
    result = EvaluationResult(str(opened.run.path if opened.run else source), opened.run is not None, report)
    if own and report.measurements is not None:
        result = replace(result, own_metrics=report_own_metrics(own, *report.measurements, report.overlap))
    if parent is not None:
        measured = measure_generations(model, prepared, settings, report, parent)
        del model
        if parent.is_merged:
            measured = _try_original_base(measured, parent, opened.precision)
        result = replace(result, generations=report_generations(measured, run))
    if run is not None:
        try_write_report(run)
    return result


def _try_own_metrics(own: Sequence[OwnMetric], prepared: PreparedEvaluation, settings: EvaluationSection) -> None:
    """Score a reference with itself before weights load. Raise UsageError if a function fails or has no replies."""
    replies = min(1, settings.samples + settings.reply_count)
    items = read_reply_items(prepared.compared, prepared.tokenizer, samples=replies, replies=0)
    if not items:
        raise UsageError(
            "--metric scores replies to held-out dialogues, and there are none. Fix: give some with --data FILE."
        )
    for metric in own:
        metric.score(items[0].reference, items[0].reference, "a reference as its own reply")


def _try_original_base(measured: Measured, parent: Parent, precision: PrecisionPlan) -> Measured:
    """Measure the base of a merged parent if it is on this machine; otherwise report that it is missing."""
    try:
        base = find_adapter_base(parent.stored, TrustOptions(), untrusted_name=not parent.record.made_by_user)
        identity = parent.stored.identity
        if identity and compute_identity(base, load_tokenizer(base), stops=()).weights != identity.weights:
            raise IntegrityError(f"{base.name} has other weights than in the parent's training.")
    except LoraChatError as error:
        logger.info(f"The base before the merge is not measured: {first_line(error)}")
        return measured
    return add_original_base(measured, base, precision)
