"""The verdict of a comparison, in the same words wherever it is shown."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from lora_chat.evaluation.intervals import SIGNIFICANCE
from lora_chat.evaluation.metrics import Metric, MetricFigures
from lora_chat.evaluation.overlap import OverlapReport
from lora_chat.evaluation.prompt_control import PromptControl

USED_TWICE = (
    "The validation set was used twice, to choose the checkpoint and for these figures, so they may look better than "
    "on new dialogues (data.test or data.test_share gives a set that is used once)."
)
"""Sentence on a comparison whose set also chose the checkpoint."""
EvaluatedSet = Literal["validation", "test", "given"]
VerdictWord = Literal["better", "worse", "no difference shown", "withheld", "not measured"]


@dataclass(frozen=True)
class Verdict:
    """Whether the adapted model is better than its base, by one metric."""

    word: VerdictWord
    metric: str | None
    """Name of the metric that decides; None if nothing was measured."""
    text: str
    """The verdict in one sentence."""
    needed_items: int | None = None
    """Number of items that would show a difference of this size."""

    def as_dict(self) -> dict[str, object]:
        """Return the verdict for JSON."""
        return asdict(self)


def judge(
    metric: Metric | None,
    figures: Mapping[str, MetricFigures],
    *,
    overlap: OverlapReport | None = None,
    general: str | None = None,
    control: PromptControl | None = None,
    used_twice: bool = False,
) -> Verdict:
    """Return the verdict by the decisive metric.

    `overlap` withholds it if the items were trained on. `general` says in one clause how other abilities changed. A
    `control` that shows no dependence on the prompts, or a constant answer that is right as often, takes back `better`.
    """
    pair = figures.get(metric.name) if metric is not None else None
    notes = [USED_TWICE] if used_twice else []
    notes += overlap.format_notes(metric.items if metric else None) if overlap else []
    other_abilities = [f"{general[0].upper()}{general[1:]}."] if general else []
    if metric is None or pair is None:
        nothing = "Not measured: there is no validation set (data.validation_share: 0) and no question."
        return Verdict("not measured", None, " ".join([nothing, *other_abilities, *notes]))
    withheld = overlap.explain_withheld(metric.items) if overlap else None
    if withheld is not None:
        return Verdict("withheld", metric.name, " ".join([f"Withheld: {withheld}", *other_abilities, *notes]))
    word: VerdictWord = pair.get("verdict", "no difference shown")
    doubt = _find_doubt(metric, pair, control) if word == "better" else None
    if doubt is not None:
        word = "no difference shown"
    needed = pair.get("needed_items")
    clauses = [f"{_format_word(word, needed)}: {format_difference(metric, pair)}", *filter(None, (doubt, general))]
    return Verdict(word, metric.name, " ".join([_end_sentence("; ".join(clauses)), *notes]), needed)


def _end_sentence(text: str) -> str:
    """Return a text that ends with a full stop or a question mark."""
    return text if text.endswith("?") else f"{text}."


def _find_doubt(metric: Metric, pair: MetricFigures, control: PromptControl | None) -> str | None:
    """Return why a better figure does not show that anything was learned; None without such a reason."""
    constant, p_value = pair.get("constant"), pair.get("constant_p_value", 1.0)
    if constant is not None and not (pair["adapted"] > constant and p_value < SIGNIFICANCE):
        return f"but always giving the most frequent answer reaches {metric.format(constant)}"
    if control is not None and not control.depends_on_prompt:
        return (
            f"but after its prompt a reply is as likely as after another one ({control.own:.3f} and "
            f"{control.other:.3f} nats per token): do prompts and replies belong together?"
        )
    return None


def _format_word(word: str, needed: int | None) -> str:
    """Format the word with the number of items that would be needed."""
    if word == "no difference shown" and needed is not None:
        return f"No difference shown at the task (needs about {needed:,} items)"
    return f"{word.capitalize()} at the task"


def format_difference(metric: Metric, pair: MetricFigures) -> str:
    """Format both values of a metric, and their difference with its interval, and the number of items."""
    questions = pair.get("questions", 0)
    text = f"{metric.format_label(questions)} {metric.format(pair['base'])} -> {metric.format(pair['adapted'])}"
    change = format_change(metric, pair)
    return f"{text} ({change}, {pair.get('items', 0):,} {metric.items})" if change else text


def format_change(metric: Metric, pair: MetricFigures) -> str:
    """Format the difference of a metric with its 95 % interval; nothing if it was not measured."""
    interval = pair.get("difference_interval")
    if interval is None:
        return ""
    difference, low, high = (_format_signed(metric, v) for v in (pair["adapted"] - pair["base"], *interval))
    return f"{difference}{' points' if metric.is_share else ''}, 95 % interval {low} to {high}"


def _format_signed(metric: Metric, value: float) -> str:
    """Format a difference with its sign; that of a share in points of 100."""
    text = f"{100 * abs(value):.1f}" if metric.is_share else metric.format(abs(value))
    is_zero = text == ("0.0" if metric.is_share else metric.format(0.0))
    return text if is_zero else f"{'+' if value > 0 else '-'}{text}"
