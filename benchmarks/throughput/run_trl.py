"""Train with stock TRL on the rows of a work folder in a fresh process; print one line of JSON.

    python benchmarks/throughput/run_trl.py --work DIR --steps 6 --setting '{"batch": 8, "dtype": "float32"}'

The defaults below are those of `trl sft` 1.16 (trl/scripts/sft.py, ModelConfig, SFTConfig):
batch of 8 without accumulation, gradient checkpointing, bf16 autocast, base loaded in float32, no packing,
max_length 1024, adamw_torch_fused; quantized (--load_in_4bit): NF4, compute dtype of the loaded base, so float32,
LoRA weights cast to bf16.

These settings differ, so that all trainers do the same work (defaults in brackets): rows are encoded, in file order and
not cut to 1024; LoRA on all linear layers (q_proj and v_proj) with r 16 and alpha 32 as in `trl sft`, without dropout
(0.05), from one saved initial adapter; double quantization (off); a constant learning rate of 2e-4 (linear, from 2e-5);
logging at every step. With packing, rows are packed to at least 1024 tokens, or to the longest row, so that no row
is cut; its steps then contain other dialogues.
"""

import os
import tempfile
import warnings
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from command_line import run_as_asked  # noqa: E402
from datasets import Dataset  # noqa: E402
from measuring import StepClock  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PrinterCallback  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402
from work_folder import WorkFolder, work_of_steps  # noqa: E402

DEFAULTS: dict[str, Any] = {
    "batch": 8,
    "accumulation": 1,
    "checkpointing": True,
    "dtype": "float32",
    "packing": False,
    "mallopt": False,
}


def load_model(work: WorkFolder, dtype: str) -> Any:
    """Load the base in NF4 with the saved adapter, as TRL does."""
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    base = AutoModelForCausalLM.from_pretrained(
        str(work.base), dtype=getattr(torch, dtype), quantization_config=quantized, local_files_only=True
    )
    return PeftModel.from_pretrained(base, str(work.adapter), is_trainable=True)


def make_config(setting: dict[str, Any], steps: int, longest: int, folder: str) -> SFTConfig:
    """Return the SFTConfig of a setting."""
    rows: dict[str, Any] = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    if setting["packing"]:  # TRL packs when it prepares the data set
        rows = {"max_length": max(1024, longest), "packing": True}
    return SFTConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=setting["batch"],
        gradient_accumulation_steps=setting["accumulation"],
        gradient_checkpointing=setting["checkpointing"],
        train_sampling_strategy="sequential",
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=1.0,
        seed=0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        **rows,
    )


def run(work: WorkFolder, steps: int, setting: dict[str, Any]) -> dict[str, Any]:
    """Train and return the measurements."""
    rows = work.read_rows()
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=load_model(work, setting["dtype"]),
            args=make_config(setting, steps, max(len(row["input_ids"]) for row in rows), folder),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(str(work.base), local_files_only=True),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        if setting["packing"]:
            rows = [{key: row[key] for key in ("input_ids", "labels", "seq_lengths")} for row in trainer.train_dataset]
    dialogues = [len(row.get("seq_lengths", [0])) for row in rows]
    done = work_of_steps(rows, dialogues, setting["batch"] * setting["accumulation"], steps)
    seen = clock.logs[-1].get("num_tokens")
    if seen is not None and int(seen) != sum(step.tokens for step in done):
        raise RuntimeError(f"TRL saw {seen} tokens, not the {sum(step.tokens for step in done)} of the first rows.")
    return clock.report(done, setting=setting)


if __name__ == "__main__":
    run_as_asked("stock TRL on the rows of a work folder", run, DEFAULTS)
