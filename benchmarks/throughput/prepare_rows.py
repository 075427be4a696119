"""Convert a chat file into a work folder with rows, base and initial adapter for every trainer.

    python benchmarks/throughput/prepare_rows.py FILE.jsonl --work DIR [--shared-prefix 240] [--base NAME]

The rows are encoded by lora_chat once, so that every trainer gets the same ids and labels, and shuffled with a fixed
seed, so that every trainer can take them in order. With --shared-prefix, every dialogue gets the same system message
of about that many tokens before it is encoded.
"""

import argparse
import json
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

from measuring import versions  # noqa: E402
from shared_prefix import make_system_message, write_with_system  # noqa: E402
from transformers.utils import logging  # noqa: E402
from work_folder import Row, WorkFolder, count_supervised  # noqa: E402

from lora_chat.config.plan import Plan, make_plan  # noqa: E402
from lora_chat.config.recipe import BaseSection, Recipe  # noqa: E402
from lora_chat.models.adapter import attach_adapter  # noqa: E402
from lora_chat.models.base_model import find_base, load_base_model, load_tokenizer  # noqa: E402
from lora_chat.pipeline.prepare import PreparedRun, prepare_run  # noqa: E402
from lora_chat.system.console import print_logged_messages  # noqa: E402
from lora_chat.system.hardware import detect_hardware  # noqa: E402
from lora_chat.system.hashing import digest_file  # noqa: E402

_SHUFFLE_SEED = 7


def plan_for(file: Path, base: str) -> Plan:
    """Return the plan for rows, base and adapter."""
    sections: dict[str, Any] = {
        "base": {"name": base},
        "quantization": {"mode": "4bit", "double_quantization": True},
        "adapter": {"rank": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"},
        "data": {"train": str(file.resolve()), "validation_share": 0.05, "max_length": 4096},
        "training": {"effective_batch_size": 8, "seed": 0},
    }
    return make_plan(Recipe.model_validate(sections), detect_hardware())


def write_rows(prepared: PreparedRun, work: WorkFolder) -> dict[str, Any]:
    """Write the shuffled rows; return their facts."""
    rows = [{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in prepared.train.rows]
    random.Random(_SHUFFLE_SEED).shuffle(rows)
    return write_rows_to(rows, work)


def write_rows_to(rows: list[Row], work: WorkFolder) -> dict[str, Any]:
    """Write rows in their order; return their facts."""
    with work.rows.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    lengths = [len(row["input_ids"]) for row in rows]
    supervised = sum(count_supervised(row["labels"]) for row in rows)
    return {
        "rows": len(rows),
        "tokens": sum(lengths),
        "supervised_tokens": supervised,
        "supervised_share": supervised / sum(lengths),
        "mean_length": sum(lengths) / len(rows),
        "longest": max(lengths),
        "average_context": sum(n * (n + 1) / 2 for n in lengths) / sum(lengths),
        "rows_sha256": digest_file(work.rows),
    }


def write_adapter(plan: Plan, prepared: PreparedRun, work: WorkFolder) -> None:
    """Write initial LoRA weights from the plan's seed, in fp32 as PEFT initializes them."""
    model = attach_adapter(load_base_model(prepared.base, plan.precision), plan.adapter, plan.training.seed)
    # "auto" would ask the hub whether the vocabulary was resized.
    model.save_pretrained(str(work.adapter), safe_serialization=True, save_embedding_layers=False)


def main() -> None:
    """Make the work folder and print its facts."""
    arguments = argparse.ArgumentParser(description="a chat file as rows for every trainer")
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--shared-prefix", type=int, default=0, metavar="TOKENS")
    arguments.add_argument("--base", default="smollm2-135m-instruct")
    options = arguments.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    work = WorkFolder(options.work)
    work.path.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"file": options.file.name, "shared_prefix": options.shared_prefix, "versions": versions()}
    with tempfile.TemporaryDirectory() as folder:
        file = options.file
        if options.shared_prefix:
            file = Path(folder) / options.file.name
            tokenizer = load_tokenizer(find_base(BaseSection(name=options.base)))
            write_with_system(options.file, file, make_system_message(tokenizer, options.shared_prefix))
        plan = plan_for(file, options.base)
        print_logged_messages()
        prepared = prepare_run(plan)
        facts |= write_rows(prepared, work)
    work.base.unlink(missing_ok=True)
    work.base.symlink_to(prepared.base.folder, target_is_directory=True)
    write_adapter(plan, prepared, work)
    facts["adapter_sha256"] = digest_file(work.adapter / "adapter_model.safetensors")
    work.facts.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
