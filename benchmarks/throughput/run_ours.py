"""Train with lora_chat on the rows of a work folder in a fresh process; print one line of JSON.

    python benchmarks/throughput/run_ours.py --work DIR --steps 6 --setting '{"training.micro_batch_size": 4}'

The keys of --setting are those of a recipe. Training is the unchanged `train_sft`, except that rows are taken in
file order and a clock is added to the trainer's callbacks.
"""

import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

from command_line import run_as_asked  # noqa: E402
from measuring import StepClock  # noqa: E402
from transformers import Trainer  # noqa: E402
from work_folder import StepWork, WorkFolder, work_of_steps  # noqa: E402

from lora_chat.config.plan import Plan, make_plan  # noqa: E402
from lora_chat.config.recipe import Recipe  # noqa: E402
from lora_chat.data.encoding.chat_template import install_template  # noqa: E402
from lora_chat.data.encoding.encode import EncodedDialogue  # noqa: E402
from lora_chat.models.adapter import attach_adapter  # noqa: E402
from lora_chat.models.base_model import LocalBase, load_base_model, load_tokenizer  # noqa: E402
from lora_chat.system.hardware import detect_hardware  # noqa: E402
from lora_chat.training.sft import train_sft  # noqa: E402
from lora_chat.training.training_run import TrainingRun  # noqa: E402


def plan_for(work: WorkFolder, steps: int, setting: dict[str, Any]) -> Plan:
    """Return a plan with the same work as the other trainers; lora_chat chooses the remaining settings."""
    sections: dict[str, dict[str, Any]] = {
        "base": {"name": str(work.base)},
        "quantization": {"mode": "4bit", "double_quantization": True},
        "adapter": {"rank": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"},
        "data": {"train": str(work.rows)},
        "training": {
            "max_steps": steps,
            "effective_batch_size": 8,
            "learning_rate": 2e-4,
            "schedule": "constant",
            "warmup_share": 0.0,
            "max_grad_norm": 1.0,
            "seed": 0,
        },
    }
    for key, value in setting.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return make_plan(Recipe.model_validate(sections), detect_hardware())


def load_model(work: WorkFolder, base: LocalBase, plan: Plan) -> Any:
    """Load the base in NF4 with the saved initial adapter."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    model = attach_adapter(load_base_model(base, plan.precision), plan.adapter, plan.training.seed)
    weights = load_file(work.adapter / "adapter_model.safetensors")
    outcome = set_peft_model_state_dict(model, weights)
    if outcome.unexpected_keys or any("lora_" in key for key in outcome.missing_keys):
        raise RuntimeError("The saved adapter does not fit the base.")
    return model


def watch_trainer(clock: StepClock) -> None:
    """Patch the trainer, whichever subclass it is, to take rows in order and to call the clock."""
    stock = Trainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.args.train_sampling_strategy = "sequential"
        self.add_callback(clock)
        return stock(self, *args, **kwargs)

    Trainer.train = train


def check_order(metrics: Path, done: list[StepWork]) -> None:
    """Check by the trainer's count of supervised tokens that each step took the expected rows."""
    counted = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    total = 0
    for row, step in zip((row for row in counted if "loss" in row), done, strict=True):
        total += step.supervised_tokens
        if row["supervised_tokens"] != total:
            raise RuntimeError(f"step {row['step']}: {row['supervised_tokens']} supervised tokens, not {total}")


def run(work: WorkFolder, steps: int, setting: dict[str, Any]) -> dict[str, Any]:
    """Train and return the measurements."""
    plan = plan_for(work, steps, setting)
    base = LocalBase(str(work.base), work.base)
    tokenizer = load_tokenizer(base)
    install_template(tokenizer)
    rows = work.read_rows()
    clock = StepClock()
    watch_trainer(clock)
    done = work_of_steps(rows, [1] * len(rows), plan.training.effective_batch_size, steps)
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        train_sft(
            TrainingRun(
                model=load_model(work, base, plan),
                tokenizer=tokenizer,
                train_rows=[EncodedDialogue(row["input_ids"], row["labels"]) for row in rows],
                validation_rows=(),
                plan=plan.training,
                metrics_path=metrics,
                bfloat16=plan.precision.dtype == "bfloat16",
            )
        )
        check_order(metrics, done)
    return clock.report(done, setting=plan.training.model_dump())


if __name__ == "__main__":
    run_as_asked("lora_chat on the rows of a work folder", run)
