"""Training plan -> TRL's settings: the dozen that a plan knows."""

from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.plan import TrainingPlan

if TYPE_CHECKING:
    from trl import SFTConfig


def make_sft_config(
    plan: TrainingPlan,
    folder: Path,
    *,
    bfloat16: bool,
    on_cpu: bool,
    each_epoch: bool,
    tensorboard: bool,
    one_batch_per_step: bool,
) -> "SFTConfig":
    """Checkpoints go to `folder`; with `one_batch_per_step` the collator gets all dialogues of an optimizer step."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=plan.epochs,
        max_steps=plan.max_steps or -1,
        per_device_train_batch_size=plan.effective_batch_size if one_batch_per_step else plan.micro_batch_size,
        per_device_eval_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=1 if one_batch_per_step else plan.gradient_accumulation_steps,
        gradient_checkpointing=bool(plan.gradient_checkpointing),
        learning_rate=plan.learning_rate,
        lr_scheduler_type="constant_with_warmup" if plan.schedule == "constant" else plan.schedule,
        warmup_steps=plan.warmup_share,
        weight_decay=plan.weight_decay,
        optim="adamw_torch_fused" if plan.optimizer == "adamw" else "adamw_bnb_8bit",
        max_grad_norm=plan.max_grad_norm,
        seed=plan.seed,
        bf16=bfloat16,
        use_cpu=on_cpu,
        max_length=None,  # longer rows were refused or dropped before
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="epoch" if each_epoch else "no",
        save_strategy="no",  # Committer asks for checkpoints
        save_total_limit=None,  # and deletes them: by step, and only behind one that is whole
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=["tensorboard"] if tensorboard else [],
        disable_tqdm=True,
    )
