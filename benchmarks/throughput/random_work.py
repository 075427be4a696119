"""Write a work folder for a GPU: a Llama of real size with random weights, and random rows.

Speed and memory do not depend on the values of weights and tokens.

    python benchmarks/throughput/random_work.py --work DIR --base DIR --shape 1b --tokens 2048
"""

import argparse
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from measuring import versions
from prepare_rows import write_rows_to
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from work_folder import IGNORED, Row, WorkFolder

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import AdapterSection, QuantizationSection
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import LocalBase, load_base_model
from lora_chat.models.bundled import find_bundled_base
from lora_chat.system.hardware import detect_hardware

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip
"""`1b` and `8b` are Llama 3.2 1B and Llama 3.1 8B; `tiny` only tests this script."""
_STEPS = 24
_PER_STEP = 8
_SPREAD = 0.6
_SUPERVISED = 0.5


def make_rows(tokens: int, vocabulary: int) -> list[Row]:
    """Return rows, 8 of which have about `tokens` tokens. Lengths vary as in chats; the second half is supervised."""
    draw = random.Random(0)
    mean = tokens / _PER_STEP
    rows = []
    for _ in range(_STEPS * _PER_STEP):
        length = round(draw.lognormvariate(math.log(mean) - _SPREAD**2 / 2, _SPREAD))
        length = min(max(length, 16), 4 * round(mean))
        ids = [draw.randrange(3, vocabulary) for _ in range(length)]
        begin = round(length * (1 - _SUPERVISED))
        rows.append({"input_ids": ids, "labels": [IGNORED] * begin + ids[begin:]})
    return rows


def write_base(folder: Path, shape: dict[str, Any]) -> None:
    """Write random weights in bf16, generated on the GPU if there is one."""
    tokenizer = AutoTokenizer.from_pretrained(find_bundled_base("tiny-random"))
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model("llama", **shape, **ids, max_position_embeddings=8192)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_adapter(work: WorkFolder) -> None:
    """Write initial LoRA weights in fp32."""
    precision = plan_precision(QuantizationSection(mode="4bit"), detect_hardware())
    model = load_base_model(LocalBase(str(work.base), work.base), precision)
    adapted = attach_adapter(model, AdapterSection(rank=16, alpha=32), 0)
    adapted.save_pretrained(str(work.adapter), safe_serialization=True, save_embedding_layers=False)


def make_work(work: WorkFolder, shape: str, tokens: int, base: Path) -> dict[str, Any]:
    """Write the work folder. `base` contains base and adapter, shared by the folders of one shape."""
    shared = WorkFolder(base)
    if not shared.adapter.exists():
        shutil.rmtree(base, ignore_errors=True)
        shared.base.mkdir(parents=True)
        write_base(shared.base, SHAPES[shape])
        write_adapter(shared)
    work.path.mkdir(parents=True, exist_ok=True)
    for name in ("base", "adapter"):
        (work.path / name).unlink(missing_ok=True)
        (work.path / name).symlink_to((base / name).resolve(), target_is_directory=True)
    rows = make_rows(tokens, SHAPES[shape]["vocab_size"])
    facts = {"shape": shape, "versions": versions()} | write_rows_to(rows, work)
    work.facts.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def main() -> None:
    """Make the work folder and print its facts."""
    arguments = argparse.ArgumentParser(description="random weights and rows for a GPU")
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--shape", choices=SHAPES, required=True)
    arguments.add_argument("--tokens", type=int, required=True, help="of 8 rows, about")
    arguments.add_argument("--base", type=Path, required=True, help="where base and adapter are kept")
    options = arguments.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(json.dumps(make_work(WorkFolder(options.work), options.shape, options.tokens, options.base)))


if __name__ == "__main__":
    main()
