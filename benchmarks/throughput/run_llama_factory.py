"""Train with LLaMA-Factory on the rows of a work folder in a fresh process; print one line of JSON.

    VENV/bin/python benchmarks/throughput/run_llama_factory.py --work DIR --steps 6 --setting '{"batch": 8}'

VENV is a separate environment (Python 3.11). On a computer without CUDA it was installed with:

    pip install torch==2.13.0 && echo torch==2.13.0 > only.txt
    pip install -c only.txt llamafactory==0.9.5 bitsandbytes==0.50.2
    pip uninstall -y torchvision
    rm VENV/lib/python3.11/site-packages/torchaudio/lib/*.so

PyPI's torchvision and torchaudio are built for CUDA. Beside a CPU build of torch, transformers cannot import the first
and LLaMA-Factory cannot import the second, which it never uses for text. Without its libraries torchaudio imports.

The settings are LLaMA-Factory's defaults, except for bf16, which its examples set (its default computes in float32).
These settings give all trainers the same work: rows in file order, one saved initial adapter (r 16; its default is 8),
a constant learning rate of 2e-4 (default: linear, from 5e-5), logging at every step. NF4, double quantization, AdamW
(fused) and the gradient norm of 1.0 are its defaults.

Rows are passed encoded in its format (`tokenized_path`). It packs only rows that it encoded, so with `packing` its
packing code runs here: the 8 dialogues of a step fill batch x accumulation packs, under its block-diagonal mask. It
pads all packs to one length, `cutoff_len`, here the shortest that fits every pack. So no row is dropped, and every step
trains on the same dialogues as the steps of the other trainers.
"""

import os
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "LLAMAFACTORY_VERBOSITY": "WARNING"}
warnings.filterwarnings("ignore")

from command_line import run_as_asked  # noqa: E402
from datasets import Dataset  # noqa: E402
from llamafactory.data.processor import PackedSupervisedDatasetProcessor  # noqa: E402
from llamafactory.train.tuner import run_exp  # noqa: E402
from measuring import StepClock, versions  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402
from work_folder import Row, WorkFolder, work_of_steps  # noqa: E402

DIALOGUES = 8
"""Dialogues of an optimizer step."""
DEFAULTS: dict[str, Any] = {
    "batch": 8,
    "accumulation": 1,
    "checkpointing": True,
    "packing": False,
    "mallopt": False,
}


class OrderedClock(StepClock):
    """A clock that checks that rows are taken in order."""

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if not isinstance(train_dataloader.batch_sampler.sampler, SequentialSampler):
            raise RuntimeError("LLaMA-Factory shuffles.")


class RowPacker(PackedSupervisedDatasetProcessor):
    """LLaMA-Factory's packing for encoded rows."""

    def _encode_data_example(self, prompt: list[Row], *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:
        return prompt[0]["input_ids"], prompt[0]["labels"]


def as_columns(rows: list[Row]) -> tuple[dict[str, list[Any]], int]:
    """Return LLaMA-Factory's columns with one entry per row, and the `cutoff_len` that fits every row."""
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in ("input_ids", "labels")}
    columns["attention_mask"] = [[1] * len(ids) for ids in columns["input_ids"]]
    return columns, max(len(ids) for ids in columns["input_ids"])


def as_packs(rows: list[Row], per_pack: int, base: str) -> tuple[dict[str, list[Any]], int]:
    """Return LLaMA-Factory's columns with `per_pack` rows per entry, and the `cutoff_len` that fits every entry."""
    groups = [rows[start : start + per_pack] for start in range(0, len(rows), per_pack)]
    longest = max(sum(len(row["input_ids"]) for row in group) for group in groups)
    cutoff = (
        (longest + 8) // 8 * 8
    )  # at least one token of padding, because position_ids are not padded to eights later
    settings = SimpleNamespace(cutoff_len=cutoff - 1, neat_packing=True)  # as DataArguments changes it for packing
    packer = RowPacker(template=None, tokenizer=AutoTokenizer.from_pretrained(base), processor=None, data_args=settings)
    columns: dict[str, list[Any]] = {}
    for group in groups:
        # LLaMA-Factory checks that each row has one response.
        fields: dict[str, list[Any]] = {"_prompt": [[row] for row in group], "_response": [[""]] * len(group)}
        fields |= dict.fromkeys(("_system", "_tools", "_images", "_videos", "_audios"), [None] * len(group))
        packs = packer.preprocess_dataset(fields)
        for name, values in packs.items():
            columns.setdefault(name, []).extend(values)
    if len(columns["input_ids"]) != len(groups):
        raise RuntimeError("LLaMA-Factory packed the rows differently.")
    return columns, cutoff


def run(work: WorkFolder, steps: int, setting: dict[str, Any]) -> dict[str, Any]:
    """Train and return the measurements."""
    base = str((work.base if work.base.is_dir() else Path(work.base.read_text(encoding="utf-8").strip())).resolve())
    rows = work.read_rows()[: steps * DIALOGUES]
    per_step = setting["batch"] * setting["accumulation"]
    if DIALOGUES % per_step or (per_step != DIALOGUES and not setting["packing"]):
        raise SystemExit(f"batch x accumulation must be {DIALOGUES}, with packing a divisor of it")
    columns, cutoff = as_packs(rows, DIALOGUES // per_step, base) if setting["packing"] else as_columns(rows)
    clock = OrderedClock()
    with tempfile.TemporaryDirectory() as folder:
        Dataset.from_dict(columns).save_to_disk(f"{folder}/rows")
        arguments = {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": base,
            "quantization_bit": 4,
            "finetuning_type": "lora",
            "adapter_name_or_path": str(work.adapter),
            "template": "empty",
            "dataset": "rows",  # required, but never opened
            "tokenized_path": f"{folder}/rows",
            "cutoff_len": cutoff,
            "neat_packing": setting["packing"],
            "disable_shuffling": True,
            "disable_gradient_checkpointing": not setting["checkpointing"],
            "flash_attn": "sdpa",
            "per_device_train_batch_size": setting["batch"],
            "gradient_accumulation_steps": setting["accumulation"],
            "max_steps": steps,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "constant",
            "bf16": True,
            "use_cpu": True,
            "seed": 0,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "output_dir": f"{folder}/out",
        }
        run_exp(arguments, [clock])
    done = work_of_steps(rows, [1] * len(rows), DIALOGUES, steps)
    return clock.report(done, setting=setting, versions=versions() | {"llamafactory": version("llamafactory")})


if __name__ == "__main__":
    run_as_asked("LLaMA-Factory on the rows of a work folder", run, DEFAULTS)
