"""The whole run, in order."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from lora_chat import preparation
from lora_chat.audit_view import refusal, short_audit
from lora_chat.auditing import audit_sets
from lora_chat.console import comparison_text, megabytes, say, shown
from lora_chat.delivery.card import write_card
from lora_chat.errors import DataError, StoppedError
from lora_chat.evaluation.comparison import ComparisonReport, compare
from lora_chat.evaluation.plot import write_loss_plot
from lora_chat.locking import locked
from lora_chat.models.adapter import attach_adapter, report_adapter, save_adapter
from lora_chat.models.base_model import load_base_model
from lora_chat.planning.hardware import detect_hardware
from lora_chat.planning.plan import Plan, make_plan
from lora_chat.planning.recipe import Recipe
from lora_chat.preparation import Prepared, PreparedRun, peak_memory_bytes
from lora_chat.resuming import ResumeRequest, find_resume_point, find_run
from lora_chat.run_folder import RunFolder, create_run_folder, describe, library_versions
from lora_chat.run_identity import describe_run
from lora_chat.stopping import signal_asked
from lora_chat.training.committing import Keeping
from lora_chat.training.sft import TrainingReport, train_sft


@dataclass
class Progress:
    """How far a run has come, for the message when it is stopped."""

    stage: str = "planning"
    run: RunFolder | None = None
    saved: bool = False

    def enter(self, stage: str) -> None:
        """Begin a stage; raises StoppedError if a signal came in the one before and a library swallowed it."""
        if signal_asked():
            raise self.stopped(signal_asked())
        self.stage = stage

    def stopped(self, signal_number: int) -> StoppedError:
        """What to tell someone who stopped the run."""
        if self.run is None:
            return StoppedError("Stopped; nothing was begun.", signal_number)
        kept = f"The adapter is whole: lora-chat chat {shown(self.run.path)}" if self.saved else "No adapter was saved."
        return StoppedError(
            f"Stopped while {self.stage}. {kept} The run's folder is {shown(self.run.path)}.", signal_number
        )


def fine_tune(recipe: Recipe, progress: Progress, resume: ResumeRequest | None = None) -> dict[str, Any]:
    """Recipe -> run folder with adapter and comparison. Whatever would waste the run fails before weights load.

    With `resume` a run that was cut short is continued.
    """
    started = time.monotonic()
    plan = make_plan(recipe, detect_hardware())
    progress.enter("reading the dialogues")
    prepared = preparation.prepare(plan, say)
    progress.enter("auditing the dialogues")
    audit = audit_sets(prepared.train, prepared.validation, prepared.tokenizer, plan.audit, say)
    if audit.refuses:
        raise DataError(refusal(audit, plan.audit))
    earlier = find_run(resume, recipe) if resume else None
    run = progress.run = earlier or create_run_folder(recipe, plan)
    with locked(run.path):
        identity = describe_run(plan, prepared, library_versions())
        point = find_resume_point(run, identity, resume, say) if resume else None
        if point:
            describe(run, recipe, plan)
        prepared.write(run, redacted=bool(plan.audit.redacted))
        run.write_json(run.audit, asdict(audit))
        say("\n".join([preparation.summary(plan, prepared, run), *short_audit(audit)]))
        keeping = Keeping(run.checkpoints, plan.checkpoint, identity, point)
        return _train_and_compare(plan, prepared, run, keeping, progress, started)


def _train_and_compare(
    plan: Plan, prepared: PreparedRun, run: RunFolder, keeping: Keeping, progress: Progress, started: float
) -> dict[str, Any]:
    progress.enter("loading the base")
    base = load_base_model(prepared.base, plan.precision)
    model = attach_adapter(base, plan.adapter, plan.training.seed)
    adapter = report_adapter(model)
    loaded = time.monotonic()
    say(
        f"LoRA: {adapter.trainable_parameters:,} trainable of {adapter.all_parameters:,} parameters "
        f"({adapter.share:.2%})"
    )

    progress.enter("training")
    training = train_sft(
        model,
        prepared.tokenizer,
        prepared.train.rows,
        prepared.validation.rows,
        plan.training,
        bfloat16=plan.precision.dtype == "bfloat16",
        each_epoch=plan.evaluation.each_epoch,
        metrics=run.metrics,
        tensorboard=run.tensorboard if plan.output.tensorboard else None,
        keeping=keeping,
    )
    progress.stage = "saving the adapter"
    template = str(prepared.tokenizer.chat_template)
    card = write_card(plan, prepared.identity, training.steps, None)
    size = save_adapter(model, run.adapter, prepared.identity, template, card)
    progress.saved = True
    if training.signal_number:
        write_loss_plot(run.metrics, run.plot, None)
        raise _stopped_in_training(run, training)

    progress.enter("comparing base and adapted")
    say(f"Adapter saved: {shown(run.adapter)} ({megabytes(size)})")
    report = compare_run(model, prepared, plan.evaluation, run)
    run.write_text(run.adapter / "README.md", write_card(plan, prepared.identity, training.steps, headline(report)))
    result = {
        "run": str(run.path),
        "seconds": {
            "load": round(loaded - started, 2),
            "train": round(training.seconds, 2),
            "total": round(time.monotonic() - started, 2),
        },
        "supervised_tokens": training.supervised_tokens,
        "peak_memory_bytes": peak_memory_bytes(),
        "adapter_bytes": size,
        "trainable_parameters": adapter.trainable_parameters,
        **headline(report),
    }
    run.write_json(run.result, result)
    return result


def compare_run(model: Any, prepared: Prepared, settings: Any, run: RunFolder) -> ComparisonReport:
    """Measure base against adapted and write what was found into the run."""
    report = compare(
        model,
        prepared.tokenizer,
        prepared.stop_ids,
        prepared.validation,
        prepared.questions,
        prepared.identity.system,
        settings,
        say,
    )
    run.write_json(run.comparison, report.as_dict())
    if run.metrics.exists():
        write_loss_plot(run.metrics, run.plot, report.validation_loss)
    say("\n" + comparison_text(report) + "\n")
    return report


def headline(report: ComparisonReport) -> dict[str, Any]:
    """The figures of a comparison that `--json` gives."""
    found = report.as_dict()
    result: dict[str, Any] = {key: found[key] for key in ("validation_loss", "perplexity")}
    if report.facts:
        result["facts"] = {**found["facts"], "questions": report.questions}
    return result


def _stopped_in_training(run: RunFolder, training: TrainingReport) -> StoppedError:
    return StoppedError(
        f"Stopped after step {training.steps} of {training.planned_steps}. "
        f"What was learned by then is saved in {shown(run.adapter)}; "
        f"try it: lora-chat chat {shown(run.path)}",
        training.signal_number,
    )
