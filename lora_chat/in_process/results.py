"""The result of a run, for Python."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lora_chat.errors import IntegrityError
from lora_chat.evaluation.comparison_report import QuestionAnswers, SampleReplies
from lora_chat.evaluation.metrics import METRICS, MetricFigures
from lora_chat.evaluation.verdict import Verdict, judge
from lora_chat.pipeline.sft_result import SftResult, SftSeconds
from lora_chat.runs.run_folder import RunFolder


@dataclass(frozen=True)
class FineTuneResult:
    """The result of `fine_tune`."""

    run: Path
    """Folder of the run; its adapter is in `run / "adapter"`."""
    verdict: Verdict
    """Whether the adapted model is better than its base: `word`, `text` and the `metric` that decides."""
    figures: Mapping[str, MetricFigures]
    """Figures of every metric that has data, by its name, such as `figures["validation_loss"]["adapted"]`."""
    samples: tuple[SampleReplies, ...]
    """Replies of both models to a few held-out prompts."""
    answers: tuple[QuestionAnswers, ...]
    """Answers of both models to the questions of the recipe."""
    details: SftResult
    """Everything that `lora-chat sft --json` prints: steps, seconds, memory and sizes."""

    @property
    def adapter(self) -> Path:
        """Return the folder of the adapter, in PEFT's layout."""
        return RunFolder(self.run).adapter

    @property
    def report(self) -> Path:
        """Return the path of the report, a web page that works offline."""
        return RunFolder(self.run).report

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps that were trained."""
        return self.details.steps

    @property
    def seconds(self) -> SftSeconds:
        """Return the seconds of the run: `load`, `train` and `total`."""
        return self.details.seconds


def read_run_result(result: SftResult) -> FineTuneResult:
    """Return the result of a finished run with its comparison. Raise IntegrityError if a file of it is damaged."""
    run = RunFolder(Path(result.run))
    values: dict[str, Any] = result.model_extra or {}
    comparison = run.read_comparison() if run.comparison.is_file() else {}
    figures = comparison.get("figures") or {m.name: values[m.name] for m in METRICS if values.get(m.name)}
    try:
        return FineTuneResult(
            run=run.path,
            verdict=_VERDICT.validate_python(values["verdict"]) if values.get("verdict") else judge(None, {}),
            figures=figures,
            samples=_SAMPLES.validate_python(comparison.get("samples", ())),
            answers=_ANSWERS.validate_python(comparison.get("answers", ())),
            details=result,
        )
    except ValidationError as error:
        raise IntegrityError(f"{run.comparison} is damaged: it is not a comparison that `sft` writes.") from error


_VERDICT = TypeAdapter(Verdict)
_SAMPLES = TypeAdapter(tuple[SampleReplies, ...])
_ANSWERS = TypeAdapter(tuple[QuestionAnswers, ...])
