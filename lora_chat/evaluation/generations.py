"""Base, parent and child of a continued training, compared on the child's and on the parent's held-out data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from lora_chat.evaluation.comparison_report import ComparisonReport
from lora_chat.evaluation.metrics import METRICS, Measurement, find_metric
from lora_chat.evaluation.task import EvaluationTask

Generation = Literal["base", "parent", "child"]
GENERATIONS: tuple[Generation, ...] = ("base", "parent", "child")
_MIN_CHANGE = 0.005
"""Smallest change of a loss, in nats per token, that the summary calls a change."""


@dataclass(frozen=True)
class GenerationReplies:
    """The replies of all generations to a prompt of a validation set, or their answers to a question."""

    prompt: str
    reference: str | None
    """Reply of the dialogue itself; None for a question."""
    base: str | None
    parent: str
    child: str


@dataclass(frozen=True)
class DataGenerations:
    """The measurements of all generations on one validation set."""

    dialogues: int
    figures: Mapping[str, Mapping[Generation, float | None]]
    """Value of each metric that has data, by its name; None for a base that was not on the machine."""
    questions: int
    samples: tuple[GenerationReplies, ...]
    answers: tuple[GenerationReplies, ...]

    def as_dict(self) -> dict[str, object]:
        """Return the measurements for JSON; a metric without data is null."""
        return {
            "dialogues": self.dialogues,
            **{metric.name: self.figures.get(metric.name) for metric in METRICS if metric.items != "replies"},
            "questions": self.questions,
            "samples": [asdict(sample) for sample in self.samples],
            "answers": [asdict(answer) for answer in self.answers],
        }


@dataclass(frozen=True)
class GenerationsReport:
    """The comparison of base, parent and child."""

    child_data: DataGenerations
    parent_data: DataGenerations | None
    """The same on the parent's held-out data; None if it is unknown."""

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON."""
        return {
            "child_data": self.child_data.as_dict(),
            "parent_data": self.parent_data.as_dict() if self.parent_data else None,
        }

    @property
    def figures(self) -> dict[str, object]:
        """Return the figures without replies, for the result of a run."""
        both = {"child_data": self.child_data, "parent_data": self.parent_data}
        return {
            name: {"dialogues": data.dialogues, "questions": data.questions, **data.figures} if data else None
            for name, data in both.items()
        }


@dataclass(frozen=True)
class MeasuredGenerations:
    """The outputs of all generations for one task; the base can be measured after the others."""

    task: EvaluationTask
    parent: Measurement
    child: Measurement
    base: Measurement | None = None

    def with_base(self, base: Measurement) -> "MeasuredGenerations":
        """Return the same with the outputs of the base."""
        return replace(self, base=base)

    def summarize(self) -> DataGenerations:
        """Return the figures and replies."""
        outputs: dict[Generation, Measurement | None] = {"base": self.base, "parent": self.parent, "child": self.child}
        figures: dict[str, dict[Generation, float | None]] = {}
        for metric in self.task.chosen.metrics:
            values: dict[Generation, float | None] = {
                name: metric.compute(output) if (output := outputs[name]) else None for name in GENERATIONS
            }
            if values["parent"] is not None and values["child"] is not None:
                figures[metric.name] = values
        return DataGenerations(
            dialogues=len(self.task.validation),
            figures=figures,
            questions=len(self.task.questions),
            samples=self._collect(
                [(sample.prompt, sample.reference) for sample in self.task.samples], self._read_samples
            ),
            answers=self._collect(
                [(question.question, None) for question in self.task.questions],
                lambda output: output.answers,
            ),
        )

    def _read_samples(self, output: Measurement) -> Sequence[str]:
        """Return the replies to the samples, which are the first ones."""
        return [reply.text for reply in output.replies[: self.task.num_samples]]

    def _collect(
        self, prompts: Sequence[tuple[str, str | None]], read: Callable[[Measurement], Sequence[str]]
    ) -> tuple[GenerationReplies, ...]:
        """Return the replies of all generations to prompts, each with its reference."""
        base: Sequence[str | None] = read(self.base) if self.base else [None] * len(prompts)
        replies = zip(prompts, base, read(self.parent), read(self.child), strict=True)
        return tuple(GenerationReplies(prompt, reference, b, p, c) for (prompt, reference), b, p, c in replies)


def read_outputs(report: ComparisonReport, side: Literal["base", "adapted"]) -> Measurement:
    """Return the outputs of one side of a comparison with the base, which was measured in this process."""
    assert report.measurements is not None
    return report.measurements[0] if side == "base" else report.measurements[1]


def format_generations(report: GenerationsReport) -> str:
    """Format the figures of all generations as a table, and what the child forgot in one sentence."""
    sections = [("the child's held-out data", report.child_data), ("the parent's held-out data", report.parent_data)]
    rows: list[tuple[str, ...]] = [("", *GENERATIONS)]
    for title, data in sections:
        for name, values in data.figures.items() if data else ():
            metric = find_metric(name)
            label = f"{metric.format_label(data.questions if data else 0)}, {title}"
            cells = (values[generation] for generation in GENERATIONS)
            rows.append((label, *("-" if value is None else metric.format(value) for value in cells)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:<{width}}  " + "  ".join(f"{cell:>10}" for cell in row[1:]) for row in rows]
    return "\n".join([*lines, "", format_forgetting(report)])


def format_forgetting(report: GenerationsReport) -> str:
    """Describe in one sentence whether the child forgot what its parent knew."""
    if report.parent_data is None or "validation_loss" not in report.parent_data.figures:
        return "What the child forgot was not measured, because the parent's held-out data is unknown."
    losses = report.parent_data.figures["validation_loss"]
    parent, child = losses["parent"] or 0.0, losses["child"] or 0.0
    change = f"from {parent:.3f} (parent) to {child:.3f} (child) on the parent's held-out data"
    if child > parent + _MIN_CHANGE:
        return f"The loss rose {change}: the child forgot some of what the parent had learned."
    if child < parent - _MIN_CHANGE:
        return f"The loss fell {change}: the child forgot nothing that this data measures."
    return f"The loss stayed, {change}: the child forgot nothing that this data measures."
