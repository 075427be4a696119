"""Compare estimated with measured memory of training on a GPU that emulates smaller cards.

    python benchmarks/plan_on_gpu.py [FOLDER] [--small]

Random bases of 1B and 8B shapes are written into FOLDER once (18 GB). Every setting is trained for a few steps in a
separate process that is limited to the memory of the emulated card (torch.cuda.set_per_process_memory_fraction). A
setting that fits by the estimate must not run out of memory, and a refused one must. `--small` tests the script itself
on any machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GIB = 2**30
STEPS = 3
OUT_OF_MEMORY = 9


@dataclass(frozen=True)
class Setting:
    """A training setting and the emulated card."""

    base: str
    mode: str
    card: int
    """Memory of the card, in GiB."""
    tokens: int
    """Tokens of each dialogue."""
    rows: int
    """Dialogues of a micro-batch."""
    checkpointed: bool
    fast: bool
    rank: int = 16


SETTINGS = (
    Setting("1B", "4bit", 8, 1024, 4, checkpointed=False, fast=False),
    Setting("1B", "4bit", 8, 2048, 8, checkpointed=True, fast=False),
    Setting("1B", "8bit", 8, 1024, 2, checkpointed=False, fast=True),
    Setting("1B", "none", 8, 512, 8, checkpointed=False, fast=True, rank=64),
    Setting("8B", "4bit", 8, 512, 1, checkpointed=True, fast=False),
    Setting("8B", "4bit", 12, 1024, 2, checkpointed=True, fast=False),
    Setting("8B", "4bit", 12, 2048, 4, checkpointed=True, fast=True),
    Setting("1B", "none", 12, 2048, 4, checkpointed=False, fast=False),
    Setting("8B", "8bit", 12, 512, 1, checkpointed=True, fast=False),
    Setting("8B", "4bit", 16, 1024, 2, checkpointed=False, fast=True),
    Setting("8B", "4bit", 16, 4096, 2, checkpointed=True, fast=False, rank=128),
    Setting("8B", "8bit", 16, 1024, 4, checkpointed=True, fast=True),
    Setting("1B", "8bit", 16, 2048, 8, checkpointed=False, fast=True),
    Setting("8B", "none", 24, 1024, 4, checkpointed=True, fast=False),
    Setting("8B", "8bit", 24, 2048, 4, checkpointed=False, fast=False),
    Setting("8B", "4bit", 24, 4096, 4, checkpointed=True, fast=True),
    Setting("1B", "none", 24, 4096, 4, checkpointed=False, fast=True),
)
CONFIGS = {"1B": "meta-llama/Llama-3.2-1B-Instruct", "8B": "meta-llama/Llama-3.1-8B-Instruct"}


def main() -> None:
    """Print a table with a row for each setting, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "lora-chat-bases")
    parser.add_argument("--small", action="store_true", help="two narrow layers and short rows")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        train(options.folder, Setting(**json.loads(options.child)), small=options.small)
        return
    print_versions()
    for name in CONFIGS:
        write_base(options.folder / name, name, small=options.small)
    print("| base | mode | card | dialogues | layers | path | rank | planned | took | off | verdict | came out |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    errors, wrong = [], 0
    for setting in SETTINGS:
        result = run(options, setting)
        fits, ran = result["verdict"] != "does not fit", result["reserved"] is not None
        took = result["reserved"]
        wrong += (result["verdict"] == "fits" and not ran) or (not fits and ran and took < 0.9 * setting.card * GIB)
        off = result["planned"] / took - 1 if ran else None
        errors += [abs(off)] if off is not None else []
        print(
            f"| {setting.base} | {setting.mode} | {setting.card} GiB | {setting.rows} x {setting.tokens} "
            f"| {'checkpointed' if setting.checkpointed else 'kept'} | {'fast' if setting.fast else 'stock'} "
            f"| {setting.rank} | {result['planned'] / GIB:.2f} | {took / GIB if ran else float('nan'):.2f} "
            f"| {'-' if off is None else f'{off:+.1%}'} | {result['verdict']} "
            f"| {'trained' if ran else 'out of memory'} |",
            flush=True,
        )
    print(f"\n{len(errors)} trained, worst {max(errors):.1%}; {wrong} of {len(SETTINGS)} verdicts were wrong.")


def print_versions() -> None:
    """Print the device and the versions of the libraries."""
    import torch

    from lora_chat.runs.create_run import read_library_versions

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(device + "; " + ", ".join(f"{name} {version}" for name, version in read_library_versions().items()) + "\n")


def write_base(folder: Path, name: str, *, small: bool) -> None:
    """Write a base with random weights and the widths of a known one."""
    from lora_chat.models.base_config import read_known_configs
    from lora_chat.models.shape import read_shape
    from lora_chat.pipeline.machine_benchmark_worker import write_random_model

    if (folder / "model.safetensors").is_file():
        return
    config = dict(read_known_configs()[CONFIGS[name]])
    if small:
        config.update(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)
    folder.mkdir(parents=True, exist_ok=True)
    write_random_model(config, 2 if small else read_shape(config, name).num_layers, folder)


def run(options: argparse.Namespace, setting: Setting) -> Any:
    """Train one setting in a separate process; return its measurements."""
    command = [sys.executable, __file__, str(options.folder), "--child", json.dumps(asdict(setting))]
    command += ["--small"] if options.small else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this file itself
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def train(folder: Path, setting: Setting, *, small: bool) -> None:
    """Estimate and train one setting; print the estimated and measured bytes (None if memory ran out)."""
    import numpy as np
    import torch

    from lora_chat.config.plan import make_plan
    from lora_chat.config.recipe import Recipe
    from lora_chat.data.lengths import DataLengths, RowLengths
    from lora_chat.errors import OutOfMemoryError
    from lora_chat.models.adapter import attach_adapter
    from lora_chat.models.base_model import LocalBase, load_base_model, load_tokenizer
    from lora_chat.models.bundled import find_bundled_base
    from lora_chat.models.shape import read_shape
    from lora_chat.pipeline.machine_benchmark_worker import make_random_rows
    from lora_chat.planning.device import USABLE_MEMORY_FRACTION
    from lora_chat.planning.estimate import judge_fit
    from lora_chat.planning.local_device import detect_local_device
    from lora_chat.planning.settings_search import Candidate, PlanningProblem
    from lora_chat.system.hardware import detect_hardware
    from lora_chat.system.memory_limit import is_out_of_memory
    from lora_chat.training.sft import train_sft
    from lora_chat.training.training_run import TrainingRun

    tokens = 32 if small else setting.tokens
    recipe = Recipe.model_validate(
        {
            "data": {"train": "random"},
            "quantization": {"mode": setting.mode},
            "adapter": {"rank": setting.rank},
            "training": {
                "effective_batch_size": setting.rows,
                "micro_batch_size": setting.rows,
                "max_steps": STEPS,
                "gradient_checkpointing": setting.checkpointed,
                "fast_path": setting.fast,
                "optimizer": "adamw",
            },
        }
    )
    hardware = detect_hardware()
    plan = make_plan(recipe, hardware)
    config = json.loads((folder / setting.base / "config.json").read_text(encoding="utf-8"))
    shape = read_shape(config, setting.base)
    rows = make_random_rows([tokens] * setting.rows * STEPS, 0.3, shape.vocab_size)
    counts = np.array([tokens] * len(rows))
    lengths = RowLengths(counts, counts, np.array([row.supervised_tokens for row in rows]))
    target = detect_local_device(hardware).with_memory_limit(round(USABLE_MEMORY_FRACTION * setting.card * GIB))
    choice = Candidate(plan, PlanningProblem(shape, DataLengths(lengths, lengths, (), 1), target))
    phase = next(phase for phase in choice.phases if phase.name == "train")
    gpu = hardware.device == "cuda"
    if gpu:
        torch.cuda.set_per_process_memory_fraction((setting.card * GIB - target.context) / target.memory)
    took = allocated = None
    began = time.monotonic()
    try:
        base = load_base_model(LocalBase(setting.base, folder / setting.base), plan.precision)
        model = attach_adapter(base, plan.adapter, 0)
        with tempfile.TemporaryDirectory() as run_folder:
            train_sft(
                TrainingRun(
                    model=model,
                    tokenizer=load_tokenizer(LocalBase("", find_bundled_base("smollm2-135m-instruct"))),
                    train_rows=rows,
                    validation_rows=[],
                    plan=plan.training,
                    metrics_path=Path(run_folder) / "metrics.jsonl",
                    bfloat16=plan.precision.dtype == "bfloat16",
                )
            )
        allocated = torch.cuda.max_memory_allocated() if gpu else 0
        took = torch.cuda.max_memory_reserved() + target.context if gpu else phase.total
    except (RuntimeError, OutOfMemoryError) as error:
        if not isinstance(error, OutOfMemoryError) and not is_out_of_memory(error):
            raise
    print(
        json.dumps(
            {
                "planned": phase.total,
                "verdict": judge_fit(choice.peak, target.free),
                "reserved": took,
                "allocated": allocated,
                "seconds": time.monotonic() - began,
            }
        )
    )


if __name__ == "__main__":
    main()
