"""Callback that applies the plan's learning rate to a resumed run, even if the checkpoint's plan had another one."""

from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    import torch


class ResumeLearningRate(TrainerCallback):
    """Replace the peak rate and weight decay that Trainer reads from a checkpoint's optimizer."""

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
        for number, group in enumerate(optimizer.param_groups):
            factor = lr_scheduler.lr_lambdas[number](lr_scheduler.last_epoch)
            lr_scheduler.base_lrs[number] = group["initial_lr"] = args.learning_rate
            group["lr"] = args.learning_rate * factor
            if number == 0:  # Trainer's second group, biases and norms, never decays
                group["weight_decay"] = args.weight_decay
        lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # logged for the next step
