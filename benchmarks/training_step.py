"""Seconds a training step takes, lora_chat against plain TRL, on the same dialogues, base and settings.

    python benchmarks/training_step.py [--recipe recipes/quickstart.yaml] [--steps 6] [--rounds 2] [--set ...]

CPU: the rounds alternate between the trainers, because times on a busy machine drift. The loss of the first step
shows that all compute the same thing.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PrinterCallback, TrainerCallback  # noqa: E402
from transformers.utils import logging  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from lora_chat.models.adapter import attach_adapter  # noqa: E402
from lora_chat.models.base_model import load_base_model  # noqa: E402
from lora_chat.planning.hardware import detect_hardware  # noqa: E402
from lora_chat.planning.plan import Plan, make_plan  # noqa: E402
from lora_chat.planning.recipe_file import read_recipe  # noqa: E402
from lora_chat.preparation import PreparedRun, prepare  # noqa: E402
from lora_chat.training import sft  # noqa: E402
from lora_chat.training.recording import Recorder  # noqa: E402


class Clock(TrainerCallback):
    """Notes when each step ends, and the loss of the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.first_loss = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}) and not self.first_loss:
            self.first_loss = float(logs["loss"])


def run_ours(plan: Plan, prepared: PreparedRun, clock: Clock) -> None:
    """Train as `lora-chat sft` does."""
    model = attach_adapter(load_base_model(prepared.base, plan.precision), plan.adapter, plan.training.seed)

    class Timed(Recorder):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            super().on_step_end(*args, **kwargs)
            clock.on_step_end(*args, **kwargs)

        def on_log(self, *args: Any, **kwargs: Any) -> None:
            super().on_log(*args, **kwargs)
            clock.on_log(*args, **kwargs)

    import lora_chat.training.recording as recording

    recording.Recorder, stock = Timed, recording.Recorder  # type: ignore[misc]
    try:
        with tempfile.TemporaryDirectory() as folder:
            sft.train_sft(
                model,
                prepared.tokenizer,
                prepared.train.rows,
                (),
                plan.training,
                bfloat16=plan.precision.dtype == "bfloat16",
                each_epoch=False,
                metrics=Path(folder) / "metrics.jsonl",
            )
    finally:
        recording.Recorder = stock  # type: ignore[misc]


def run_trl(plan: Plan, prepared: PreparedRun, clock: Clock, **settings: Any) -> None:
    """Train with TRL's SFTTrainer as it comes, on bitsandbytes' own layers."""
    dtype = getattr(torch, plan.precision.dtype)
    quantised = {}
    if plan.precision.mode == "4bit":
        quantised["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    base = AutoModelForCausalLM.from_pretrained(prepared.base.folder, dtype=dtype, **quantised)
    model = attach_adapter(base, plan.adapter, plan.training.seed)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_steps=plan.training.max_steps,
            learning_rate=plan.training.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=plan.training.warmup_share,
            seed=plan.training.seed,
            bf16=plan.precision.dtype == "bfloat16",
            use_cpu=True,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            **settings,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=sft._make_dataset(prepared.train.rows),
            processing_class=prepared.tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def main() -> None:
    """Run every trainer in turn and print the table."""
    arguments = argparse.ArgumentParser(description="lora_chat against plain TRL, in seconds a step")
    arguments.add_argument("--recipe", default="recipes/quickstart.yaml")
    arguments.add_argument("--steps", type=int, default=6)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--set", action="append", default=[], dest="settings")
    given = arguments.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    plan = make_plan(
        read_recipe(given.recipe, [f"training.max_steps={given.steps}", *given.settings]), detect_hardware()
    )
    if plan.precision.device != "cpu":
        sys.exit("This benchmark is for the CPU.")
    prepared = prepare(plan, lambda _: None)
    batch = plan.training.effective_batch_size
    trainers = {
        "TRL, its defaults": {"per_device_train_batch_size": batch},
        "TRL, best settings": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": batch,
            "gradient_checkpointing": False,
        },
        "lora_chat": None,
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    losses = {}
    for _ in range(given.rounds):
        for name, settings in trainers.items():
            clock = Clock()
            if settings is None:
                run_ours(plan, prepared, clock)
            else:
                run_trl(plan, prepared, clock, **settings)
            seconds[name] += [b - a for a, b in pairwise(clock.ends)]
            losses[name] = clock.first_loss
    ours = statistics.median(seconds["lora_chat"])
    tokens = sum(len(row.input_ids) for row in prepared.train.rows) / len(prepared.train.rows) * batch
    print(f"{batch} dialogues a step, {tokens:.0f} tokens on average, {plan.precision.mode}, torch {torch.__version__}")
    print(f"{'':20} {'s/step':>8} {'fastest':>8} {'x ours':>7} {'first loss':>11}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:20} {middle:8.2f} {min(times):8.2f} {middle / ours:7.2f} {losses[name]:11.4f}")


if __name__ == "__main__":
    main()
