"""Settings of the optimizer's parameter groups, which a resumed run must have too."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GroupSettings:
    """The plan's settings of a parameter group."""

    learning_rate: float
    """Peak learning rate."""
    weight_decay: float


def read_group_settings(optimizer: "torch.optim.Optimizer") -> tuple[GroupSettings, ...]:
    """Return the settings of each group of an optimizer that has made no step."""
    return tuple(GroupSettings(group["lr"], group["weight_decay"]) for group in optimizer.param_groups)
