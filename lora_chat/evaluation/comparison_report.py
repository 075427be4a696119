"""The result of a comparison of base and adapted model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from lora_chat.evaluation.general.report import GeneralReport
from lora_chat.evaluation.label_report import LabelReport
from lora_chat.evaluation.metrics import (
    METRICS,
    Measurement,
    Metric,
    MetricFigures,
)
from lora_chat.evaluation.overlap import OverlapReport
from lora_chat.evaluation.prompt_control import PromptControl
from lora_chat.evaluation.recital import RecitalReport
from lora_chat.evaluation.verdict import EvaluatedSet, Verdict, judge


@dataclass(frozen=True)
class SampleReplies:
    """The replies of both models to a prompt of the validation set."""

    prompt: str
    reference: str
    """Reply of the dialogue itself."""
    base: str
    adapted: str


@dataclass(frozen=True)
class QuestionAnswers:
    """The answers of both models to a question, and whether they are correct."""

    question: str
    base: str
    adapted: str
    base_right: bool
    adapted_right: bool


@dataclass(frozen=True)
class ItemReplies:
    """The replies of both models to a held-out prompt, and what each metric of replies gives them."""

    prompt: str
    reference: str
    base: str
    adapted: str
    scores: Mapping[str, tuple[float | None, float | None]]
    """Value of each metric for the reply of the base and of the adapted model; None if the item does not count."""


@dataclass(frozen=True)
class ComparisonReport:
    """All results of a comparison."""

    figures: Mapping[str, MetricFigures]
    """Figures of every metric that has data, by its name."""
    validation_dialogues: int
    """Number of dialogues of the evaluated set."""
    samples: tuple[SampleReplies, ...]
    answers: tuple[QuestionAnswers, ...]
    verdict: Verdict = field(default_factory=lambda: judge(None, {}))
    metrics: Sequence[Metric] = METRICS
    reason: str = ""
    """Sentence that says which metrics were chosen, and why."""
    items: tuple[ItemReplies, ...] = ()
    evaluated_set: EvaluatedSet = "validation"
    overlap: OverlapReport | None = None
    """How much of the evaluated set was trained on; None if it is unknown."""
    unseen_figures: MetricFigures | None = None
    """Figures of the loss on the rows that were not trained on; None if all rows count, or if these are few."""
    measurements: "tuple[Measurement, Measurement] | None" = None
    """Measurements of base and adapted model, which JSON leaves out."""
    recital: RecitalReport | None = None
    """Training replies that both models complete word for word; None if that was not measured."""
    used_twice: bool = False
    """Whether the evaluated set also chose the checkpoint, so that its figures look better than those of new data."""
    control: PromptControl | None = None
    """Whether the replies of the adapted model depend on their prompts; None if it was not measured."""
    general: GeneralReport | None = None
    """How general abilities changed; None if no general items were asked."""
    labels: LabelReport | None = None
    """Figures of each label; None unless the metrics have accuracy."""

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON; a metric of earlier versions without data is null."""
        pairs = {name: {"base": pair["base"], "adapted": pair["adapted"]} for name, pair in self.figures.items()}
        return {
            **{name: pairs.get(name) for name in _METRICS_AT_TOP},
            "validation_dialogues": self.validation_dialogues,
            "samples": [asdict(sample) for sample in self.samples],
            "questions": len(self.answers),
            "answers": [asdict(answer) for answer in self.answers],
            "set": self.evaluated_set,
            "used_twice": self.used_twice,
            "overlap": self._overlap_fields,
            "verdict": self.verdict.as_dict(),
            "metrics": self.reason,
            "figures": dict(self.figures),
            "items": [asdict(item) for item in self.items],
            "recital": self.recital.as_dict() if self.recital else None,
            "control": self.control.as_dict() if self.control else None,
            "general": self.general.as_dict() if self.general else None,
            "confusion": self.labels.as_dict() if self.labels else None,
        }

    @property
    def _overlap_fields(self) -> dict[str, object] | None:
        """Return the overlap with training for JSON, with the figures of the unseen rows."""
        return {**self.overlap.as_dict(), "unseen": self.unseen_figures} if self.overlap else None

    @property
    def result_fields(self) -> dict[str, object]:
        """Return the figures and the verdict, for the result of a run and for `eval --json`."""
        return {
            **self.figures,
            "verdict": self.verdict.as_dict(),
            "set": self.evaluated_set,
            **({"overlap": self._overlap_fields} if self.overlap else {}),
            **({"general": self.general.summary} if self.general else {}),
            **({"recital": self.recital.as_dict()} if self.recital else {}),
        }


_METRICS_AT_TOP = ("validation_loss", "perplexity", "facts")
"""Metrics that earlier versions wrote at the top of the report, without intervals."""
