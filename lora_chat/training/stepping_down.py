"""Training that begins again in smaller pieces, once, where its largest micro-batch did not fit."""

from collections.abc import Mapping
from typing import Any

from lora_chat.planning.plan import TrainingPlan


class StepDown(Exception):
    """The largest micro-batch does not fit, but that of this plan does: it was tried."""

    def __init__(self, plan: TrainingPlan, note: str) -> None:
        super().__init__(note)
        self.plan = plan


def identity_of(plan: TrainingPlan, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is, with the training settings that it has now."""
    fields = {f"training.{name}": value for name, value in plan.model_dump(mode="json").items()}
    return {**identity, **{name: value for name, value in fields.items() if name in identity}}
