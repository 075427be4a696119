"""Measure the seconds of a checkpoint: python benchmarks/checkpoint_overhead.py

The embedded base in 4 bits gets an adapter of rank 28, so adapter and optimizer state have about 100 MB. Every step
writes a checkpoint. `written` is the time of Trainer; `counted` is the time of the commit: sync, digests, manifest,
deletion of an older checkpoint. Verification is the first step of a resume.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer
from lora_chat.runs.checkpoints import verify_checkpoint
from lora_chat.system.hardware import detect_hardware
from lora_chat.training.callbacks.checkpoint import CheckpointCallback, CheckpointPolicy
from lora_chat.training.sft import train_sft
from lora_chat.training.training_run import TrainingRun


class Ids:
    """A dialogue of random ids, all of them supervised."""

    def __init__(self, number: int) -> None:
        self.input_ids = [(number * 31 + i * 17) % 40_000 + 10 for i in range(40)]
        self.labels = self.input_ids
        self.supervised_tokens = len(self.labels) - 1


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=28)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--folder", help="where checkpoints are written; by default the system's temporary folder")
    options = parser.parse_args()
    settings: dict[str, Any] = {
        "data": {"train": "-"},
        "adapter": {"rank": options.rank},
        "training": {"max_steps": options.steps, "effective_batch_size": 2},
        "checkpoint": {"every_steps": 1},
    }
    plan = make_plan(Recipe.model_validate(settings), detect_hardware())
    base = find_base(plan.base)
    model = attach_adapter(load_base_model(base, plan.precision), plan.adapter)
    written, counted, whole = [], [], []
    stock = CheckpointCallback.on_save

    def on_save(self: CheckpointCallback, *args: Any, **kwargs: Any) -> None:
        began = time.monotonic()
        stock(self, *args, **kwargs)
        counted.append(time.monotonic() - began)
        whole.append(self.last_write_seconds)
        written.append(self.last_write_seconds - counted[-1])

    CheckpointCallback.on_save = on_save  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        train_sft(
            TrainingRun(
                model=model,
                tokenizer=load_tokenizer(base),
                train_rows=[Ids(number) for number in range(64)],
                validation_rows=[],
                plan=plan.training,
                metrics_path=folder / "metrics.jsonl",
                bfloat16=plan.precision.dtype == "bfloat16",
                float16=plan.precision.dtype == "float16",
                checkpoint_policy=CheckpointPolicy(folder / "checkpoints", plan.checkpoint, {}),
            )
        )
        last = max(folder.glob("checkpoints/checkpoint-*"), key=lambda path: path.stat().st_mtime)
        size = sum(path.stat().st_size for path in last.iterdir())
        began = time.monotonic()
        verify_checkpoint(last)
        verified = time.monotonic() - began
    minutes = plan.checkpoint.every_minutes or 5.0
    print(f"\n{size / 1e6:.0f} MB a checkpoint, {len(whole)} checkpoints, every {minutes:g} minutes by default\n")
    print("| | seconds (fastest..slowest) | share of the time between two |")
    print("|---|---|---|")
    for label, times in (("written", written), ("counted", counted), ("both", whole)):
        middle = statistics.median(times)
        print(f"| {label} | {middle:.2f} ({min(times):.2f}..{max(times):.2f}) | {middle / (60 * minutes):.2%} |")
    print(f"| verified at a resume | {verified:.2f} | once |")


if __name__ == "__main__":
    main()
