"""The settings of TRL's SFTTrainer, from a training run."""

from typing import TYPE_CHECKING

from lora_chat.config.plan import TrainingPlan
from lora_chat.training.training_run import TrainingRun

if TYPE_CHECKING:
    from trl import SFTConfig

DEFAULT_RESTART_CYCLES = 2


def make_sft_config(run: TrainingRun) -> "SFTConfig":
    """Return TRL's settings; the collator gets all dialogues of an optimizer step."""
    from lora_chat.training.single_card import SingleCardConfig

    plan = run.plan
    scheduler, scheduler_options = _choose_scheduler(plan)
    return SingleCardConfig(
        output_dir=str(run.checkpoint_policy.folder if run.checkpoint_policy else run.metrics_path.parent),
        num_train_epochs=plan.epochs,
        max_steps=plan.max_steps or -1,
        per_device_train_batch_size=plan.effective_batch_size,
        per_device_eval_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=1,  # StepCollator makes the micro-batches
        gradient_checkpointing=bool(plan.gradient_checkpointing),
        learning_rate=plan.learning_rate,
        lr_scheduler_type=scheduler,
        lr_scheduler_kwargs=scheduler_options,
        warmup_steps=plan.warmup,
        adam_beta2=plan.adam_beta2,
        weight_decay=plan.weight_decay,
        optim="adamw_torch_fused" if plan.optimizer == "adamw" else "adamw_bnb_8bit",
        max_grad_norm=plan.max_grad_norm,
        seed=plan.seed,
        bf16=run.bfloat16,
        fp16=run.float16,  # with accelerate's gradient scaler
        use_cpu=run.on_cpu,
        max_length=None,  # longer rows were refused or dropped before
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="no",  # ValidationCallback decides when to measure
        save_strategy="no",  # CheckpointCallback decides when to save
        save_total_limit=None,  # and deletes old checkpoints only after a newer one is committed
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(run.reporters.names),
        run_name=run.metrics_path.parent.name if run.reporters.names else None,
        **_trackio_options(SingleCardConfig),
        disable_tqdm=True,
        # The router is frozen, so nothing can balance it; the loss is the cross entropy, as on the fast path.
        router_aux_loss_coef=0.0,
    )


def _trackio_options(config_class: type["SFTConfig"]) -> dict[str, str | bool]:
    """Return the name of the project in Trackio, and that no page is uploaded; older versions lack the fields."""
    options: dict[str, str | bool] = {"project": "lora-chat", "trackio_static_space_id": False}
    return {name: value for name, value in options.items() if name in config_class.__dataclass_fields__}


def _choose_scheduler(plan: TrainingPlan) -> tuple[str, dict[str, float]]:
    """Return Transformers' name of a schedule, and its options."""
    if plan.schedule == "cosine_restarts":
        return "cosine_with_restarts", {"num_cycles": plan.restart_cycles or DEFAULT_RESTART_CYCLES}
    if plan.min_learning_rate is not None:
        # A share, so that each parameter group of LoRA+ ends at its own minimum.
        return "cosine_with_min_lr", {"min_lr_rate": plan.min_learning_rate / plan.learning_rate}
    return "constant_with_warmup" if plan.schedule == "constant" else plan.schedule, {}
