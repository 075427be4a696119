"""The gradient scaler of fp16 training: the rule for skipped steps, and their count over resumes.

Small gradients would be zero in fp16, so the loss is multiplied by a scale. A gradient that overflows tells the scaler
to skip the optimizer step and to halve the scale (https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lora_chat.runs.metrics_log import MetricsRow

if TYPE_CHECKING:
    from torch.amp import GradScaler

MIN_LOSS_SCALE = 1.0
"""Smallest scale that training accepts, as in DeepSpeed; below it, gradients of the loss itself overflow."""
MAX_SKIPPED_IN_A_ROW = 10
"""Largest number of consecutive skipped steps. From the initial scale of 65,536 they lead to 64."""
FLOAT32_FIX = "train in fp32, which is slower, with --set quantization.dtype=float32, or choose another base"
"""Ways to train a base that overflows in fp16."""
SKIPPED_STEPS, LOSS_SCALE = "skipped_steps", "loss_scale"
"""Names of the figures in the metrics of a step: skipped steps up to this one, and the scale after it."""


class LossScale:
    """The scale of one training and its skipped steps."""

    def __init__(self, scaler: "GradScaler", earlier_rows: Sequence[MetricsRow] = ()) -> None:
        """Continue the counts of the steps before a resume, which are in the metrics."""
        self._scaler = scaler
        counts = [int(row[SKIPPED_STEPS]) for row in earlier_rows if type(row.get(SKIPPED_STEPS)) is int]
        self.skipped_steps = counts[-1] if counts else 0
        """Steps that were skipped since the beginning of the training."""
        self.skipped_in_a_row = _count_last_increases([0, *counts])

    def record_step(self, *, skipped: bool) -> None:
        """Count a step before the scaler does it or skips it."""
        self.skipped_steps += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    @property
    def has_collapsed(self) -> bool:
        """Return whether the scaler cannot help: too many steps in a row were skipped, or the next scale is too small.

        It is asked before the scaler has halved the scale for the step that was recorded last.
        """
        if not self.skipped_in_a_row:
            return False
        next_scale = self._scaler.get_scale() * self._scaler.get_backoff_factor()
        return self.skipped_in_a_row > MAX_SKIPPED_IN_A_ROW or next_scale < MIN_LOSS_SCALE

    def read_figures(self) -> MetricsRow:
        """Return the figures for the metrics of a step."""
        return {LOSS_SCALE: self._scaler.get_scale(), SKIPPED_STEPS: self.skipped_steps}

    def format_note(self, steps: int) -> str | None:
        """Return a note about skipped steps at the end of a training; None without skipped steps."""
        if not self.skipped_steps:
            return None
        return (
            f"fp16: {self.skipped_steps} of {steps} steps were skipped while the gradient scaler found its scale, "
            f"{self._scaler.get_scale():g}."
        )


def _count_last_increases(counts: Sequence[int]) -> int:
    """Return the number of consecutive increases at the end."""
    increases = [after > before for before, after in pairwise(counts)]
    return next((number for number, up in enumerate(reversed(increases)) if not up), len(increases))


def check_scaler_state(state: object) -> None:
    """Raise ValueError unless a state, read from a checkpoint, is one that PyTorch's scaler writes."""
    from torch.amp import GradScaler

    expected = GradScaler("cpu").state_dict()
    if not isinstance(state, dict) or state.keys() != expected.keys():
        raise ValueError("it is not the state of a gradient scaler")
    scale, tracker = state["scale"], state["_growth_tracker"]
    if any(state[name] != value for name, value in expected.items() if name not in ("scale", "_growth_tracker")):
        raise ValueError("it has other settings than training uses")
    if type(scale) is not float or not MIN_LOSS_SCALE <= scale < math.inf:
        raise ValueError("its scale is not a number that training accepts")
    if type(tracker) is not int or not 0 <= tracker < expected["growth_interval"]:
        raise ValueError("its counter is out of range")
