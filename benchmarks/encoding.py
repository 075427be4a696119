"""Measure the seconds from files to token ids and labels, beside TRL's preparation of the same files.

    python benchmarks/encoding.py FILE.jsonl ... [--base smollm2-135m-instruct] [--rounds 2] [--workers 2]

Files are JSON lines of `messages`. TRL gets the base's template with `{% generation %}` marks around replies, so that
it masks them too. The trainer that it needs is also built once without data, and that time is subtracted. Both read
the file, render, encode and mask; lora_chat also checks every row, its prompts and its stop tokens. The rounds
alternate, because times on a busy machine drift.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="encoding-")

import torch  # noqa: E402
from datasets import disable_progress_bars, load_dataset  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils import logging  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from lora_chat.config.recipe import BaseSection  # noqa: E402
from lora_chat.data.encoding.chat_template import install_template  # noqa: E402
from lora_chat.data.parsing.rows import ReadingOptions  # noqa: E402
from lora_chat.data.storage.cache import open_store  # noqa: E402
from lora_chat.data.storage.encode_chunk import EncodingOptions  # noqa: E402
from lora_chat.data.storage.ledger import Ledger  # noqa: E402
from lora_chat.models.base_model import find_base, load_tokenizer  # noqa: E402
from lora_chat.models.stop_tokens import read_stop_ids  # noqa: E402

MARKED = (
    "{%- for message in messages -%}{%- if message.role == 'assistant' -%}"
    "{{ '<|im_start|>assistant\n' }}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{%- else -%}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def run_ours(path: Path, tokenizer: Any, stops: tuple[int, ...], limit: int, workers: int) -> Ledger:
    """Encode a file into a store. Another limit gives another store, so that the cache is not used."""
    encoding = EncodingOptions(ReadingOptions(), limit)
    return open_store([path], tokenizer, stops, encoding, workers=workers).ledger


def run_trl(path: Path | None, tokenizer: Any, model: Any, workers: int) -> None:
    """Encode a file into the data set of a trainer. Without a file, the trainer gets one encoded row."""
    with tempfile.TemporaryDirectory() as folder:
        if path:
            data: Any = load_dataset("json", data_files=str(path), split="train", cache_dir=folder)
            data = data.select_columns(["messages"])
        else:
            from datasets import Dataset

            data = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1, 2]]})
        config = SFTConfig(
            output_dir=folder,
            max_length=None,
            assistant_only_loss=path is not None,
            dataset_num_proc=workers if workers > 1 else None,
            dataset_kwargs=None if path else {"skip_prepare_dataset": True},
            report_to=[],
            use_cpu=True,
            bf16=False,
        )
        SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure both programs on every file and print the table."""
    arguments = argparse.ArgumentParser(description="lora_chat against TRL, seconds of encoding")
    arguments.add_argument("files", nargs="+", type=Path)
    arguments.add_argument("--base", default="smollm2-135m-instruct")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--max-length", type=int, default=1 << 20)
    arguments.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = arguments.parse_args()
    logging.set_verbosity_error()
    disable_progress_bars()
    base = find_base(BaseSection(name=options.base))
    tokenizer, marked = load_tokenizer(base), load_tokenizer(base)
    install_template(tokenizer)
    marked.chat_template = MARKED
    stops = read_stop_ids(base, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(find_base(BaseSection(name="tiny-random")).folder)
    several = options.workers
    print(f"{several} processors, torch {torch.__version__}, base {options.base}")
    print(f"{'':28} {'way':30} {'seconds':>8} {'fastest':>8} {'supervised tokens/s':>20} {'x ours':>7}")
    for path in options.files:
        times: dict[str, list[float]] = {}
        tokens = 0
        for number in range(options.rounds):
            for workers in sorted({1, several}):
                name = f"{workers} process{'es' if workers > 1 else ''}"
                ours = partial(run_ours, path, tokenizer, stops, options.max_length + 2 * number + workers, workers)
                for key in (f"lora_chat, {name}", f"lora_chat, {name}, again"):
                    times.setdefault(key, []).append(timed(ours))
                tokens = ours().supervised_tokens
                empty = timed(partial(run_trl, None, marked, model, 1))
                theirs = timed(partial(run_trl, path, marked, model, workers))
                times.setdefault(f"TRL, {name}", []).append(theirs - empty)
        middles = {key: statistics.median(values) for key, values in times.items()}
        best = min(middle for key, middle in middles.items() if key.startswith("lora_chat") and "again" not in key)
        for key, middle in sorted(middles.items()):
            rate = f"{tokens / middle:20,.0f}"
            print(f"{path.name:28} {key:30} {middle:8.2f} {min(times[key]):8.2f} {rate} {middle / best:7.2f}")


if __name__ == "__main__":
    main()
