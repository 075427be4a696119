"""The choice of the step whose adapter is saved.

This is the one-standard-error rule (Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984,
section 3.4.3): among the steps whose cost is within one standard error of the lowest, the simplest one is chosen, which
is the earliest here. The standard error is that of the paired difference on the same rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_chat.config.limits import MAX_STEP_COPIES
from lora_chat.runs.validation_log import MeasuredLoss
from lora_chat.training.row_scores import Measure, RowScores

_TITLES: dict[Measure, str] = {"validation_loss": "validation loss", "token_accuracy": "token accuracy"}


@dataclass(frozen=True)
class MeasuredStep:
    """A step with the scores of its validation rows."""

    step: int
    scores: RowScores


@dataclass(frozen=True)
class KeptStep:
    """The step whose adapter is saved, and why."""

    step: int
    reason: str

    def describe(self, last_step: int) -> str:
        """Return the sentence for the user."""
        which = f"step {self.step} of {last_step}" if self.step != last_step else f"the last step, {last_step}"
        return f"Kept {which}: {self.reason}."


def update_candidates(
    candidates: Sequence[MeasuredStep], new: MeasuredStep, measure: Measure
) -> tuple[MeasuredStep, ...]:
    """Return the steps that may still be kept after a measurement; the earliest is kept if training ends there.

    A step is a candidate if no earlier one has a lower or the same cost. It is out for good once a later candidate is
    lower by more than one standard error. Of more than `MAX_STEP_COPIES`, the latest ones before the new one go.
    """
    if candidates and not new.scores.cost(measure) < candidates[-1].scores.cost(measure):
        return tuple(candidates)
    remaining = [each for each in candidates if not each.scores.compare(new.scores, measure).is_higher]
    return (*remaining[: MAX_STEP_COPIES - 1], new)


def count_without_improvement(measurements: Sequence[MeasuredLoss], measure: Measure) -> int:
    """Return the number of measurements after the best one; of equal ones the first is the best."""
    costs = [_cost(measurement, measure) for measurement in measurements]
    return len(costs) - 1 - costs.index(min(costs)) if costs else 0


def _cost(measurement: MeasuredLoss, measure: Measure) -> float:
    """Return the figure of a measure, or its negative, so that a lower one is better."""
    if measure == "token_accuracy":
        return -measurement.token_accuracy
    return float("inf") if measurement.validation_loss is None else measurement.validation_loss


def find_better_step(measurements: Sequence[MeasuredLoss], measure: Measure) -> MeasuredLoss | None:
    """Return the best measurement if it is better than the last one."""
    if not measurements:
        return None
    best = min(measurements, key=lambda measurement: _cost(measurement, measure))
    return best if _cost(best, measure) < _cost(measurements[-1], measure) else None


def explain_choice(measurements: Sequence[MeasuredLoss], measure: Measure, stopped_after: int | None = None) -> str:
    """Return why the first candidate is kept, after all measurements of a run."""
    last = measurements[-1]
    by_step = {measurement.step: measurement for measurement in measurements}
    chosen, best = by_step[min(last.candidates)], by_step[max(last.candidates)]
    text = f"its {_TITLES[measure]}, {_format_figure(chosen, measure)}, is "
    if chosen is best:
        text += "the best of all measured steps"
    else:
        text += f"within one standard error of the best, {_format_figure(best, measure)} at step {best.step}"
    if last is not chosen:
        text += f"; the last step had {_format_figure(last, measure)} ({_format_difference(last, measure)})"
    if stopped_after is not None:
        count = f"{stopped_after} measurements" if stopped_after > 1 else "1 measurement"
        text += f"; training stopped after {count} without an improvement"
    return text


def explain_last(problem: str, better: MeasuredLoss | None, measure: Measure) -> str:
    """Return why the last step is kept, and an earlier one that was better."""
    if better is None:
        return problem
    return f"{problem}; step {better.step} had a better {_TITLES[measure]}, {_format_figure(better, measure)}"


def _format_figure(measurement: MeasuredLoss, measure: Measure) -> str:
    """Format the loss or the token accuracy of a measurement."""
    figure = measurement.validation_loss if measure == "validation_loss" else measurement.token_accuracy
    return "non-finite" if figure is None else f"{figure:.3f}"


def _format_difference(last: MeasuredLoss, measure: Measure) -> str:
    """Format how far the last step is from the kept one, in its unit and in standard errors."""
    change = last.difference if measure == "validation_loss" else -last.difference
    if last.standard_error == 0:
        return f"{change:+.3f}"
    return f"{change:+.3f}, {abs(last.difference) / last.standard_error:.1f} standard errors"
