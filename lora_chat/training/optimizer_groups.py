"""Parameter groups of the optimizer: those of Trainer, or those of LoRA+ by PEFT."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


@dataclass(frozen=True)
class GroupSettings:
    """The plan's settings of a parameter group."""

    learning_rate: float
    """Peak learning rate."""
    weight_decay: float


def make_lora_plus_optimizer(
    model: "PeftModel",
    optimizer_class: "type[torch.optim.Optimizer]",
    options: Mapping[str, object],
    *,
    ratio: float,
    weight_decay: float,
) -> "torch.optim.Optimizer":
    """Return PEFT's LoRA+ optimizer (arXiv 2402.12354), without its empty groups.

    `options` are the optimizer's arguments, among them the learning rate of the matrices A.
    """
    from peft.optimizers import create_loraplus_optimizer

    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        model, optimizer_class, loraplus_lr_ratio=ratio, loraplus_weight_decay=weight_decay, **options
    )
    # A fused optimizer and a checkpoint gain nothing from groups without parameters.
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer


def read_group_settings(optimizer: "torch.optim.Optimizer") -> tuple[GroupSettings, ...]:
    """Return the settings of each group of an optimizer that has made no step."""
    return tuple(GroupSettings(group["lr"], group["weight_decay"]) for group in optimizer.param_groups)
