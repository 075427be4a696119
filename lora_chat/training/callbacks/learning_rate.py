"""A trainer callback: the learning rate is that of the plan, also where a checkpoint of another plan goes on."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ResumeLearningRate(TrainerCallback):
    """Trainer takes peak rate and weight decay from the checkpoint's optimizer, whatever its arguments say."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        if not state.global_step:
            return
        for number, group in enumerate(optimizer.param_groups):
            factor = lr_scheduler.lr_lambdas[number](lr_scheduler.last_epoch)
            lr_scheduler.base_lrs[number] = group["initial_lr"] = args.learning_rate
            group["lr"] = args.learning_rate * factor
            if number == 0:  # Trainer's second group, biases and norms, never decays
                group["weight_decay"] = args.weight_decay
        lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # what is logged for the next step
