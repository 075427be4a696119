"""The measured steps of a run: their log, the copies of those that may be kept, and the choice among them."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.limits import MIN_ROWS_TO_CHOOSE
from lora_chat.config.plan import TrainingPlan
from lora_chat.errors import IntegrityError, explain_write_errors
from lora_chat.runs.validation_log import MeasuredLoss, read_validation_log, write_validation_log
from lora_chat.training.kept_step import (
    KeptStep,
    MeasuredStep,
    count_without_improvement,
    explain_choice,
    explain_last,
    find_better_step,
    update_candidates,
)
from lora_chat.training.row_scores import PairedDifference, RowScores
from lora_chat.training.step_copies import StepCopies

if TYPE_CHECKING:
    from peft import PeftModel

LOG_NAME, COPIES_NAME = "validations.json", "candidates"
"""Names of the log and of the folder of copies in a run folder."""


class MeasuredSteps:
    """The measured steps up to now, in a run folder.

    A measurement is written in this order: the copy of the weights, the log, the metrics; then copies that are no
    longer needed are deleted. A run that was killed in between measures the step again, with the same result, or only
    writes the metrics.
    """

    def __init__(self, folder: Path, plan: TrainingPlan, rows: int) -> None:
        self._log_path = folder / LOG_NAME
        self._copies = StepCopies(folder / COPIES_NAME)
        self._measure = plan.keep_by
        self._early_stopping = plan.early_stopping
        self._rows = rows
        self._keep = plan.keep
        self._measurements: list[MeasuredLoss] = []
        self._candidates: tuple[MeasuredStep, ...] = ()

    @property
    def chooses(self) -> bool:
        """Return whether the best step is kept if it is not the last."""
        return self._keep == "best" and self._rows >= MIN_ROWS_TO_CHOOSE

    def restore(self, step: int, measured_steps: Collection[int]) -> None:
        """Read the measurements up to a step, from which training continues, and forget later ones.

        `measured_steps` are the steps with a validation loss in the metrics. Raise IntegrityError if the log or a
        needed copy is missing or damaged.
        """
        if not step:
            with explain_write_errors(self._log_path, "the validation log"):
                self._log_path.unlink(missing_ok=True)
            self._copies.delete_except(())
            return
        log = read_validation_log(self._log_path)
        rows = tuple(row for row in log.rows if row.step <= step)
        if self.chooses:
            self._check_complete(rows, measured_steps)
            self._candidates = tuple(
                MeasuredStep(number, self._copies.read_scores(number, digest))
                for number, digest in (rows[-1].candidates if rows else {}).items()
            )
        self._measurements = list(rows)
        if rows != log.rows:
            write_validation_log(self._log_path, rows)

    def _check_complete(self, rows: Sequence[MeasuredLoss], measured_steps: Collection[int]) -> None:
        """Raise IntegrityError if the log lacks a measured step or its candidates, as after `training.keep: last`."""
        known = {row.step for row in rows}
        has_candidates = not rows or rows[-1].candidates or all(row.validation_loss is None for row in rows)
        if not known >= set(measured_steps) or not has_candidates:
            raise IntegrityError(
                f"The run cannot keep its best step, because the weights of the steps that were measured before are "
                f"not in {self._log_path.parent}.\n"
                "Fix: train again without --resume, or keep the last step: --set training.keep=last, with "
                "--accept-change training.keep if the run kept the best."
            )

    def find(self, step: int) -> MeasuredLoss | None:
        """Return the measurement of a step, if there is one."""
        return next((row for row in self._measurements if row.step == step), None)

    def add(self, model: "PeftModel", step: int, scores: RowScores) -> MeasuredLoss:
        """Add a measurement: write the weights if the step may be kept, and the log."""
        digests = dict(self._measurements[-1].candidates) if self._measurements else {}
        new, is_finite = MeasuredStep(step, scores), math.isfinite(scores.loss)
        difference = PairedDifference(0.0, 0.0)
        if self.chooses and is_finite:
            self._check_same_rows(scores)
            self._candidates = update_candidates(self._candidates, new, self._measure)
            if self._candidates[-1] is new:
                digests[step] = self._copies.write(model, step, scores)
            difference = scores.compare(self._candidates[0].scores, self._measure)
        measurement = MeasuredLoss(
            step,
            scores.loss if is_finite else None,
            scores.token_accuracy,
            {each.step: digests[each.step] for each in self._candidates},
            difference.mean,
            difference.standard_error,
        )
        self._measurements.append(measurement)
        write_validation_log(self._log_path, self._measurements)
        return measurement

    def _check_same_rows(self, scores: RowScores) -> None:
        """Raise IntegrityError if earlier steps were measured on other rows."""
        if any(each.scores.tokens.tolist() != scores.tokens.tolist() for each in self._candidates):
            raise IntegrityError(
                "The validation set is not the one of the earlier measurements, so that their losses cannot be "
                "compared.\nFix: restore it, or train again without --resume."
            )

    def delete_unneeded_copies(self, checkpoint_steps: Collection[int]) -> None:
        """Delete copies that no choice needs, neither now nor after resuming one of these checkpoints.

        A resumed checkpoint needs the candidates of its own measurement, and the ones before it, because its own may be
        repeated.
        """
        needed = self._measurements[-1:]
        for limit in checkpoint_steps:
            needed += [row for row in self._measurements if row.step <= limit][-2:]
        self._copies.delete_except({step for row in needed for step in row.candidates})

    @property
    def should_stop(self) -> bool:
        """Return whether training stops early."""
        limit = self._early_stopping
        return limit is not None and count_without_improvement(self._measurements, self._measure) >= limit

    def choose(self, model: "PeftModel", last_step: int, planned_steps: int) -> KeptStep:
        """Put the weights of the kept step into the model, and return it. Raise IntegrityError for a lost copy."""
        problem = self._explain_no_choice()
        if problem:
            better = find_better_step(self._measurements, self._measure)
            return KeptStep(last_step, explain_last(problem, better, self._measure))
        chosen = self._candidates[0]
        if chosen.step != last_step:
            self._copies.load(model, chosen.step, self._measurements[-1].candidates[chosen.step])
        stopped_after = self._early_stopping if self.should_stop and last_step < planned_steps else None
        return KeptStep(chosen.step, explain_choice(self._measurements, self._measure, stopped_after))

    def _explain_no_choice(self) -> str:
        """Return why the last step is kept without a choice; empty if there is one."""
        if not self._rows:
            return "there is no validation set"
        if self._keep == "last":
            return "training.keep is last"
        if self._rows < MIN_ROWS_TO_CHOOSE:
            return f"the validation set has {self._rows} rows, and {MIN_ROWS_TO_CHOOSE} are needed to choose a step"
        if not self._measurements:
            return "the validation set was not measured during training (evaluation.each_epoch, evaluation.every_steps)"
        return "" if self._candidates else "no measured step has a finite validation loss"
