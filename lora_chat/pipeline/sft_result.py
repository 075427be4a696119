"""The result of a finished run: `result.json` and the `--json` output of `sft`."""

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from lora_chat.errors import IntegrityError
from lora_chat.evaluation.comparison_report import ComparisonReport
from lora_chat.pipeline.estimate_history import EstimateRecord, format_record, make_estimate_record
from lora_chat.planning.estimate import RunEstimate
from lora_chat.processes.group import current_group
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.bounded_files import MEDIUM_FILE_BYTES, read_json_object
from lora_chat.system.console import format_bytes, quote_path
from lora_chat.system.memory_usage import peak_memory_bytes, peak_reserved_bytes
from lora_chat.training.training_run import TrainingResult


class SftSeconds(TypedDict):
    """Seconds of a run."""

    load: float
    """Seconds until the base is loaded."""
    train: float
    total: float
    """Seconds of the whole run, including those before it was resumed."""


class SftResult(BaseModel):
    """The result of a run. The figures of the comparison are further keys, named after their metrics."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, use_attribute_docstrings=True)

    run: str
    seconds: SftSeconds
    steps: int
    planned_steps: int | None = None
    last_step: int | None = None
    """Last step that was trained."""
    kept_step: int | None = None
    """Step whose adapter was saved."""
    kept_because: str | None = None
    """Reason why it was kept."""
    supervised_tokens: int
    peak_memory_bytes: int
    adapter_bytes: int
    trainable_parameters: int
    processes: int = 1
    """Number of processes that trained together; it is recorded if there are several. Memory is that of the first."""
    estimate_record: EstimateRecord | None = Field(default=None, alias="forecast")

    def as_dict(self) -> dict[str, object]:
        """Return the result for JSON, with the keys that it was made with."""
        return self.model_dump(exclude_unset=True, by_alias=True)

    def with_estimate(self, estimate: RunEstimate, planning_seconds: float, *, resumed: bool) -> "SftResult":
        """Return the result with the record of its estimate.

        The estimate does not include the planning, because planning benchmarks the machine.
        """
        run_seconds, train_seconds = self.seconds["total"] - planning_seconds, self.seconds["train"]
        record = make_estimate_record(estimate, peak_reserved_bytes(), run_seconds, train_seconds, resumed=resumed)
        return self.model_copy(update={"estimate_record": record})


def round_seconds(load: float, training: TrainingResult, total: float) -> SftSeconds:
    """Return the rounded seconds of the run; a resumed run also counts the training before it."""
    return {
        "load": round(load, 2),
        "train": round(training.seconds, 2),
        "total": round(training.seconds_before_resume + total, 2),
    }


def make_result(
    run: RunFolder,
    training: TrainingResult,
    trainable_parameters: int,
    adapter_bytes: int,
    seconds: SftSeconds,
    report: ComparisonReport,
) -> SftResult:
    """Return the result of the run."""
    processes = current_group().size
    return SftResult.model_validate(
        {
            "run": str(run.path),
            "seconds": seconds,
            "steps": training.steps,
            "planned_steps": training.planned_steps,
            "last_step": training.steps,
            "kept_step": training.kept_step.step,
            "kept_because": training.kept_step.reason,
            "supervised_tokens": training.supervised_tokens,
            "peak_memory_bytes": peak_memory_bytes(),
            "adapter_bytes": adapter_bytes,
            "trainable_parameters": trainable_parameters,
            **({"processes": processes} if processes > 1 else {}),
            **report.result_fields,
        }
    )


def read_finished_result(run: RunFolder) -> SftResult:
    """Read the result of a finished run, with the run's present folder. Raise IntegrityError if it is damaged."""
    try:
        result = SftResult.model_validate({**run.read_result(), "run": str(run.path)})
        format_result(result)
    except (ValidationError, TypeError, ArithmeticError) as error:
        raise IntegrityError(f"{run.result} is damaged: it is not a result that `sft` writes.") from error
    return result


def format_result(result: SftResult) -> str:
    """Format the closing lines of `sft`."""
    lines = (
        f"{result.trainable_parameters:,} parameters trained in {result.seconds['train']:.0f} s "
        f"({result.seconds['total']:.0f} s in total), peak memory {format_bytes(result.peak_memory_bytes)}, "
        f"adapter {format_bytes(result.adapter_bytes)}"
    )
    return f"{lines}\n{format_record(result.estimate_record)}" if result.estimate_record else lines


def suggest_next_command(run: RunFolder) -> str:
    """Return the command that asks the adapter as it was trained, which continues plain text or answers."""
    statistics = read_json_object(run.statistics, MEDIUM_FILE_BYTES) if run.statistics.is_file() else {}
    formats = {name for source in statistics.get("sources", ()) for name in source.get("files", {}).values()}
    run_path = quote_path(run.path)
    return f'lora-chat generate {run_path} "TEXT"' if formats == {"text"} else f"lora-chat chat {run_path}"
