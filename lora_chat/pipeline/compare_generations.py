"""The comparison of a child with its parent and their base, after a continued training and in `eval`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_chat.config.plan import PrecisionPlan
from lora_chat.config.recipe import EvaluationSection
from lora_chat.evaluation.comparison_report import ComparisonReport
from lora_chat.evaluation.generations import (
    GenerationsReport,
    MeasuredGenerations,
    format_generations,
    read_outputs,
)
from lora_chat.evaluation.task import EvaluationTask, make_task
from lora_chat.models.adapter import exchanged_adapter, without_adapter
from lora_chat.models.base_model import LocalBase, load_base_model
from lora_chat.models.bound_adapter import BoundAdapter
from lora_chat.pipeline.parent import Parent
from lora_chat.pipeline.prepare import PreparedEvaluation, prepare_held_out_files
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.gpu_memory import release_gpu_memory

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

Measured = tuple[MeasuredGenerations, MeasuredGenerations | None]
"""The outputs on the child's data, and on the parent's held-out data if it is known."""


def measure_generations(
    model: "PeftModel",
    prepared: PreparedEvaluation,
    settings: EvaluationSection,
    report: ComparisonReport,
    parent: Parent,
) -> Measured:
    """Measure what the comparison of a child with its base leaves out; a merged parent is the child's base.

    The base of a merged parent is another model, which `add_original_base` measures.
    """
    child_task = _make_task(prepared, settings)
    held_out = _prepare_parent_data(prepared, parent)
    parent_task = _make_task(held_out, settings) if held_out else None
    base = read_outputs(report, "base")
    child = read_outputs(report, "adapted")
    model.eval()
    child_on_parent_data = parent_task.measure(model, "the child on the parent's data") if parent_task else None
    with _parent_active(model, parent):
        parent_on_child_data = base if parent.is_merged else child_task.measure(model, "the parent")
        parent_on_parent_data = parent_task.measure(model, "the parent on its own data") if parent_task else None
    on_child_data = MeasuredGenerations(child_task, parent_on_child_data, child, None if parent.is_merged else base)
    on_parent_data = None
    if parent_task and parent_on_parent_data and child_on_parent_data:
        on_parent_data = MeasuredGenerations(parent_task, parent_on_parent_data, child_on_parent_data)
        if not parent.is_merged:
            with without_adapter(model):
                on_parent_data = on_parent_data.with_base(parent_task.measure(model, "the base on the parent's data"))
    return on_child_data, on_parent_data


@contextmanager
def _parent_active(model: "PeftModel", parent: Parent) -> Iterator[None]:
    """Let a model compute as the parent: with its weights, or without the child's if the parent is merged."""
    with without_adapter(model) if parent.is_merged else exchanged_adapter(model, parent.stored):
        yield


def add_original_base(measured: Measured, base: LocalBase, precision: PrecisionPlan) -> Measured:
    """Load the base into which a parent was merged, and measure it; the child must not be in memory any more."""
    release_gpu_memory()
    on_child_data, on_parent_data = measured
    model = load_base_model(base, precision).eval()
    on_child_data = on_child_data.with_base(on_child_data.task.measure(model, "the base before the merge"))
    if on_parent_data:
        base_outputs = on_parent_data.task.measure(model, "the base before the merge on the parent's data")
        on_parent_data = on_parent_data.with_base(base_outputs)
    return on_child_data, on_parent_data


def report_generations(measured: Measured, run: RunFolder | None) -> GenerationsReport:
    """Show the comparison of all generations and write it into the run."""
    on_child_data, on_parent_data = measured
    report = GenerationsReport(on_child_data.summarize(), on_parent_data.summarize() if on_parent_data else None)
    logger.info("\n" + format_generations(report) + "\n")
    if run is not None:
        run.write_json(run.generations, report.as_dict())
    return report


def _make_task(prepared: PreparedEvaluation, settings: EvaluationSection) -> EvaluationTask:
    """Return the task of a comparison on prepared data, with replies to the samples only."""
    return make_task(
        prepared.tokenizer,
        prepared.stop_ids,
        prepared.compared,
        prepared.questions,
        prepared.identity.system,
        settings.model_copy(update={"replies": 0}),
    )


def _prepare_parent_data(prepared: PreparedEvaluation, parent: Parent) -> PreparedEvaluation | None:
    """Return the parent's held-out data, encoded for the child's base; None if it is unknown."""
    if parent.held_out is None:
        return None
    adapter = BoundAdapter(parent.stored, prepared.base, prepared.tokenizer)
    return prepare_held_out_files(adapter, parent.record.max_length, parent.held_out)
