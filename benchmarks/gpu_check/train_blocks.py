"""Train with one trainer in blocks of steps, each after its turn: `train_blocks.py TRAINER SHAPE SIZE FOLDER`.

All trainers take the same rows in the same order, eight a step, with LoRA of rank 16 on all linear layers of a base in
NF4 with random weights. Times are those of whole steps, from one synchronization of the card to the next.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turn_gate import reserve_stdout, send, wait_for_turn

from lora_chat.system.operating_system import let_segments_grow

reserve_stdout()
if sys.argv[1] == "lora_chat":
    let_segments_grow(os.environ)  # as the command line does

import torch  # noqa: E402
from check_sizes import CheckSize, SpeedShape, find_size  # noqa: E402
from random_models import build_random_model, draw_lengths, load_random_base  # noqa: E402
from step_gradients import collected_notes, plan_training, trainer_callback  # noqa: E402
from transformers import AutoTokenizer, BitsAndBytesConfig, PrinterCallback, TrainerCallback  # noqa: E402

from lora_chat.config.plan import plan_precision  # noqa: E402
from lora_chat.config.recipe import AdapterSection, QuantizationSection  # noqa: E402
from lora_chat.models.adapter import attach_adapter  # noqa: E402
from lora_chat.pipeline.machine_benchmark_worker import make_random_rows  # noqa: E402
from lora_chat.system.hardware import detect_hardware  # noqa: E402
from lora_chat.training.sft import train_sft  # noqa: E402
from lora_chat.training.training_run import TrainingRun  # noqa: E402

_ROWS_PER_STEP = 8
_ADAPTER = AdapterSection(rank=16, alpha=32)
_SUPERVISED_SHARE = 0.5
TRL_SETTINGS: dict[str, dict[str, Any]] = {
    # The defaults of `trl sft` 1.16: base in float32 with NF4 layers, padded rows, activations recomputed.
    "trl": {"dtype": "float32", "gradient_checkpointing": True},
    "trl bf16": {"dtype": "bfloat16", "gradient_checkpointing": False},
    "trl padding-free": {"dtype": "bfloat16", "gradient_checkpointing": False, "padding_free": True},
    "trl flash": {
        "dtype": "bfloat16",
        "gradient_checkpointing": False,
        "padding_free": True,
        "attention": "flash_attention_2",
    },
}
"""Settings of TRL by trainer; `trl flash` needs the package flash-attn."""


class BlockClock(TrainerCallback):
    """Callback that waits for a turn before each block of steps and sends the seconds of the block after it."""

    def __init__(self, warmup: int, steps: int) -> None:
        self._warmup, self._steps, self._started = warmup, steps, 0.0
        self.stopped = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for a turn before the first step of a block."""
        step = state.global_step - self._warmup
        if step < 0 or step % self._steps:
            return
        torch.cuda.synchronize()
        if step == 0:
            torch.cuda.reset_peak_memory_stats()
        if not wait_for_turn(ready=True):
            sys.exit(0)
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Send the seconds of a block after its last step."""
        step = state.global_step - self._warmup
        if step <= 0 or step % self._steps:
            return
        torch.cuda.synchronize()
        seconds = time.perf_counter() - self._started
        send(
            seconds=seconds,
            steps=self._steps,
            allocated=torch.cuda.max_memory_allocated(),
            reserved=torch.cuda.max_memory_reserved(),
        )


def main() -> None:
    """Prepare the model, train until the parent has no more turns, and report an error in one message."""
    trainer, shape_name, size_name, folder = sys.argv[1:]
    size = find_size(size_name)
    shape = size.speed_shapes[shape_name]
    try:
        clock = BlockClock(size.warmup, shape.steps)
        train = train_with_lora_chat if trainer == "lora_chat" else train_with_trl
        train(trainer, Path(folder), size, shape, clock)
    except Exception as error:  # the parent prints it
        text = (str(error).strip() or "no message").splitlines()[0]
        send(error=f"{type(error).__name__}: {text}"[:300])
        raise


def make_rows(size: CheckSize, shape: SpeedShape, folder: Path) -> tuple[list[Any], int]:
    """Return the rows of all steps, and the number of steps."""
    import json

    steps = size.warmup + size.rounds * shape.steps
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return make_random_rows(draw_lengths(size.tokens, steps), _SUPERVISED_SHARE, vocabulary), steps


def train_with_lora_chat(_: str, folder: Path, size: CheckSize, shape: SpeedShape, clock: BlockClock) -> None:
    """Train with lora_chat on its fast path."""
    rows, steps = make_rows(size, shape, folder)
    precision = plan_precision(QuantizationSection(mode="4bit"), detect_hardware())
    model = attach_adapter(load_random_base(folder, precision), _ADAPTER, 0)
    torch.cuda.empty_cache()  # blocks that only the building needed
    plan = plan_training(
        _ROWS_PER_STEP, max_steps=steps, fast_path=True, micro_batch_tokens=size.tokens, max_grad_norm=1.0
    )
    with tempfile.TemporaryDirectory() as temporary, trainer_callback(clock), collected_notes() as notes:
        clock.on_step_begin = announce(clock.on_step_begin, notes)  # type: ignore[method-assign]
        train_sft(
            TrainingRun(
                model=model,
                tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
                train_rows=rows,
                validation_rows=[],
                plan=plan,
                metrics_path=Path(temporary) / "metrics.jsonl",
                bfloat16=precision.dtype == "bfloat16",
                float16=precision.dtype == "float16",
                adjustable_settings=("micro_batch_tokens", "micro_batch_size", "gradient_checkpointing"),
            )
        )


def announce(on_step_begin: Callable[..., None], notes: list[str]) -> Callable[..., None]:
    """Send the messages of lora_chat before the first step, so that a fallback of the fast path is seen."""

    def first_step(args: Any, state: Any, control: Any, **more: Any) -> None:
        """Send the messages once."""
        if state.global_step == 0:
            send(notes=list(notes))
        on_step_begin(args, state, control, **more)

    return first_step


def train_with_trl(name: str, folder: Path, size: CheckSize, shape: SpeedShape, clock: BlockClock) -> None:
    """Train with TRL's own trainer."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer

    setting = TRL_SETTINGS[name]
    rows, steps = make_rows(size, shape, folder)
    dtype = getattr(torch, setting["dtype"])
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    base = build_random_model(folder, dtype=dtype, device_map={"": 0}, quantization_config=quantization)
    if "attention" in setting:
        base.set_attn_implementation(setting["attention"])
    base.requires_grad_(False)
    torch.cuda.empty_cache()  # blocks that only the building needed
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))
    send(notes=[])
    with tempfile.TemporaryDirectory() as temporary:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=temporary,
                max_steps=steps,
                per_device_train_batch_size=_ROWS_PER_STEP,
                gradient_accumulation_steps=1,
                gradient_checkpointing=setting["gradient_checkpointing"],
                padding_free=setting.get("padding_free", False),
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                train_sampling_strategy="sequential",
                learning_rate=1e-9,
                lr_scheduler_type="constant",
                warmup_steps=0,
                max_grad_norm=1.0,
                seed=0,
                bf16=True,
                save_strategy="no",
                logging_steps=10**6,
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(
                {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
            ),
            processing_class=AutoTokenizer.from_pretrained(folder, local_files_only=True),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


if __name__ == "__main__":
    main()
