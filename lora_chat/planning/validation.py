"""The measurements of the validation set during training: how many there are, and whether they cost little time."""

import math
from typing import TYPE_CHECKING

from lora_chat.config.limits import MAX_STEP_COPIES, MIN_ROWS_TO_CHOOSE
from lora_chat.config.plan import Plan
from lora_chat.errors import RecipeError
from lora_chat.planning.workload import count_steps

if TYPE_CHECKING:
    from lora_chat.data.lengths import RowLengths

_MAX_TIME_SHARE = 0.1
"""Largest planned share of the training time that `evaluation.each_epoch: auto` spends on the validation set."""
_TRAINING_PASSES = 2
"""Lowest number of passes through the frozen layers for a trained token, of which a measured token takes one: forward,
and the gradient of the input (`step_seconds` in planning/phase_time.py)."""


def resolve_validation(plan: Plan, train: "RowLengths", validation: "RowLengths") -> Plan:
    """Return the plan with `evaluation.each_epoch` chosen, by the tokens of the training and the validation rows.

    The choice must not depend on the speed of a machine, because it decides which steps can be kept. Raise RecipeError
    for early stopping with too few rows.
    """
    rows = len(validation.tokens)
    if plan.training.early_stopping is not None and rows < MIN_ROWS_TO_CHOOSE:
        raise RecipeError(
            f"training.early_stopping: the validation set has {rows} rows, which are too few to stop by; it needs "
            f"{MIN_ROWS_TO_CHOOSE}. Fix: --set data.validation_share=SHARE, or --set training.early_stopping=null."
        )
    if plan.evaluation.each_epoch != "auto":
        return plan
    measured = plan.model_copy(update={"evaluation": plan.evaluation.model_copy(update={"each_epoch": True})})
    skipped = plan.model_copy(update={"evaluation": plan.evaluation.model_copy(update={"each_epoch": False})})
    if not rows or plan.evaluation.every_steps is not None:
        return skipped
    if plan.training.early_stopping is not None:
        return measured
    has_choice = rows >= MIN_ROWS_TO_CHOOSE and count_measurements(measured, len(train.tokens)) > 1
    return measured if has_choice and validation_time_share(measured, train, validation) < _MAX_TIME_SHARE else skipped


def count_measurements(plan: Plan, rows: int) -> int:
    """Return how often the validation set is measured while this number of rows is trained on."""
    evaluation = plan.evaluation
    if not evaluation.measures_in_training:
        return 0
    steps = count_steps(rows, plan.training)
    intervals = [max(1, -(-rows // plan.training.effective_batch_size))] if evaluation.each_epoch is True else []
    intervals += [evaluation.every_steps] if evaluation.every_steps is not None else []
    count = sum(steps // interval for interval in intervals)
    if len(intervals) == 2:
        count -= steps // math.lcm(*intervals)
    return count + all(steps % interval for interval in intervals)


def count_step_copies(plan: Plan, rows: int, validation_rows: int) -> int:
    """Return the largest number of copies of the trained weights from which the best step is chosen.

    Each checkpoint that is kept may need another copy, because it may be resumed.
    """
    if plan.training.keep == "last" or validation_rows < MIN_ROWS_TO_CHOOSE:
        return 0
    return min(count_measurements(plan, rows), MAX_STEP_COPIES + plan.checkpoint.keep)


def validation_time_share(plan: Plan, train: "RowLengths", validation: "RowLengths") -> float:
    """Return the planned time of the measurements as a share of the training time without them."""
    rows = len(train.tokens)
    steps_per_epoch = max(1, -(-rows // plan.training.effective_batch_size))
    trained_tokens = count_steps(rows, plan.training) / steps_per_epoch * float(train.tokens.sum())
    measured_tokens = count_measurements(plan, rows) * float(validation.tokens.sum())
    return measured_tokens / (_TRAINING_PASSES * trained_tokens) if trained_tokens else 0.0
