"""Callback that applies the plan's learning rate to a resumed run, even if the checkpoint's plan had another one."""

from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from lora_chat.training.optimizer_groups import GroupSettings


class ResumeLearningRate(TrainerCallback):
    """Replace the peak rate and weight decay that Trainer reads from a checkpoint's optimizer."""

    def __init__(self, group_settings: "Callable[[], Sequence[GroupSettings]]") -> None:
        self._group_settings = group_settings
        """Function that returns the plan's settings of each parameter group."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: "torch.optim.Optimizer | None" = None,
        lr_scheduler: "torch.optim.lr_scheduler.LambdaLR | None" = None,
        **kwargs: object,
    ) -> None:
        """Set the rates of all parameter groups if steps were done before."""
        if not state.global_step:
            return
        assert optimizer is not None
        assert lr_scheduler is not None
        for number, (group, settings) in enumerate(zip(optimizer.param_groups, self._group_settings(), strict=True)):
            factor = lr_scheduler.lr_lambdas[number](lr_scheduler.last_epoch)
            lr_scheduler.base_lrs[number] = group["initial_lr"] = settings.learning_rate
            group["lr"] = settings.learning_rate * factor
            group["weight_decay"] = settings.weight_decay
        lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # logged for the next step
