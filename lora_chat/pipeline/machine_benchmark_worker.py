"""Run as a process of its own: trains, measures and asks small random models of a base's widths, and says what it took.

Each model is tried in a forked child, so that its memory is its own.
"""

import contextlib
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.system.console import print_json
from lora_chat.system.memory_usage import peak_process_bytes

if TYPE_CHECKING:
    from lora_chat.data.encoding.encode import EncodedDialogue

_NOISE_COUNT = 2**20
"""Random numbers that all weights repeat: drawing new ones would take longer than training on them."""
_PRELOADED_LIBRARIES = ("trl.trainer.sft_trainer", "peft", "bitsandbytes", "datasets")
_CLEAR_REFS_PATH, _PROC_STATUS_PATH = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_BYTE_KEYS = "rss", "loaded"
_MAX_REPEATS, _REPEAT_LIMIT_SECONDS = 3, 1.0
"""Runs of what is quick, and seconds after which none more begins."""
_REPLY_TOKENS = 6
"""Tokens of the longer of two replies."""


def write_random_model(config: dict[str, Any], layers: int, folder: Path) -> None:
    """A random model with so many layers, in Hugging Face layout, in bf16."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {**config, "num_hidden_layers": layers, "n_layer": layers, "layer_types": None}
    small.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(small), encoding="utf-8")
    found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(found, trust_remote_code=False)
    noise = torch.empty(_NOISE_COUNT, dtype=torch.bfloat16).uniform_(-0.03, 0.03)
    weights, seen = {}, set()
    for name, weight in model.named_parameters():
        if id(weight) not in seen:  # tied ones stand there once
            seen.add(id(weight))
            count = weight.numel()
            whole = noise.repeat(-(-count // _NOISE_COUNT))[:count] if count > _NOISE_COUNT else noise[:count].clone()
            weights[name] = (
                torch.ones(weight.shape, dtype=noise.dtype) if weight.dim() == 1 else whole.view(weight.shape)
            )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def make_random_rows(lengths: list[int], share: float, vocabulary: int, prefix: int = 0) -> "list[EncodedDialogue]":
    """Random dialogues of given lengths, whose ends carry loss, and which begin with the same `prefix` tokens."""
    import random

    from lora_chat.data.encoding.encode import EncodedDialogue

    generator = random.Random(0)
    prefix_ids = [generator.randrange(vocabulary) for _ in range(prefix)]
    rows = []
    for length in lengths:
        same = prefix_ids[: length - 1]
        ids = same + [generator.randrange(vocabulary) for _ in range(length - len(same))]
        unsupervised = min(length - 1, max(1, round(length * (1 - share))))
        rows.append(EncodedDialogue(ids, [-100] * unsupervised + ids[unsupervised:]))
    return rows


def benchmark_layers(request: dict[str, Any], layers: int) -> dict[str, float]:
    """Seconds of everything, and most bytes, with so many layers."""
    from lora_chat.config.plan import PrecisionPlan, TrainingPlan
    from lora_chat.config.recipe import AdapterSection
    from lora_chat.evaluation.loss import evaluate_loss
    from lora_chat.inference.generation import generate_ids
    from lora_chat.models.adapter import attach_adapter
    from lora_chat.models.base_model import LocalBase, load_base_model, load_tokenizer
    from lora_chat.models.quantization.cpu_linear import dequantize_on_the_fly
    from lora_chat.models.quantization.weight_cache import disable_weight_cache
    from lora_chat.training.sft import train_sft
    from lora_chat.training.training_run import TrainingRun

    if not request["may_hold"]:  # so few layers would be, where all of them are not
        disable_weight_cache()
    training = TrainingPlan.model_validate_json(json.dumps(request["training"]))
    precision = PrecisionPlan.model_validate_json(json.dumps(request["precision"]))
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_model(request["config"], layers, folder)
        tokenizer = load_tokenizer(LocalBase("", Path(request["tokenizer"])))
        reset_peak_memory()
        began = time.monotonic()
        base = load_base_model(LocalBase("the probe", folder), precision)
        model = attach_adapter(base, AdapterSection.model_validate_json(json.dumps(request["adapter"])), 0)
        found["load"] = time.monotonic() - began
        found["loaded"] = read_peak_memory()
        rows = make_random_rows(request["lengths"], request["share"], request["vocabulary"], request["prefix"])
        reset_peak_memory()
        metrics = folder / "metrics.jsonl"
        began = time.monotonic()
        bfloat16 = precision.dtype == "bfloat16"
        train_sft(TrainingRun(model, tokenizer, rows, [], training, metrics, bfloat16))
        whole = time.monotonic() - began
        found["rss"] = read_peak_memory()
        steps = read_step_times(metrics)
        # Another program may have slowed one of them.
        pace = statistics.median(seconds / tokens for seconds, tokens in steps)
        found["step"] = pace * statistics.mean(tokens for _, tokens in steps)
        found["start"] = whole - sum(seconds for seconds, _ in steps)
        # Of so few layers, those that are bitsandbytes' own would be a third.
        dequantize_on_the_fly(model, every_layer=True)
        read = make_random_rows([request["read"]] * 2, request["share"], request["vocabulary"])
        evaluate_loss(model, read[:1])
        found["read"] = time_fastest(lambda: evaluate_loss(model, read)) / 2
        prompts = [
            row.input_ids
            for row in make_random_rows([request["prompt"]] * request["prompts"], 0.5, request["vocabulary"])
        ]
        if prompts:
            generate_ids(model, 0, prompts, [], 1)
            found["prefill"] = time_fastest(lambda: generate_ids(model, 0, prompts, [], 1))
            whole = time_fastest(lambda: generate_ids(model, 0, prompts, [], _REPLY_TOKENS))
            found["said"] = max(0.0, whole - found["prefill"]) / (_REPLY_TOKENS - 1)
    return found


def time_fastest(work: Callable[[], object]) -> float:
    """Seconds of the quickest of a few runs: other programs only slow, and few layers are to be told from some."""
    seconds: list[float] = []
    while len(seconds) < _MAX_REPEATS and sum(seconds) < _REPEAT_LIMIT_SECONDS:
        began = time.monotonic()
        work()
        seconds.append(time.monotonic() - began)
    return min(seconds)


def reset_peak_memory() -> None:
    """Most bytes from now on: writing and loading so small a model may take more than training it."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS_PATH.write_text("5", encoding="ascii")  # proc(5)


def read_peak_memory() -> float:
    """Most bytes of this process since then."""
    try:
        lines = _PROC_STATUS_PATH.read_text(encoding="ascii", errors="replace").splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return float(peak_process_bytes())


def read_step_times(metrics: Path) -> list[tuple[float, int]]:
    """Seconds and supervised tokens of every step."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    ends = [(0.0, 0), *((row["seconds"], row["supervised_tokens"]) for row in rows)]
    return [(end[0] - begin[0], end[1] - begin[1]) for begin, end in pairwise(ends)]


def combine_runs(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Of two tries the less disturbed one's seconds, since other programs and a cold disk only slow; and most bytes."""
    return {name: (max if name in _BYTE_KEYS else min)(value, second[name]) for name, value in first.items()}


def main() -> None:
    """Request on stdin; what each number of layers took, on stdout."""
    request = json.load(sys.stdin)
    for name in _PRELOADED_LIBRARIES:  # before the forks, which then need not
        importlib.import_module(name)
    few, some = request["layers"]
    results = []
    for layers in (few, some) * 2:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            os.dup2(2, 1)
            with os.fdopen(write, "w") as pipe:
                json.dump(benchmark_layers(request, layers), pipe)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        results.append(json.loads(text))
    print_json([combine_runs(results[0], results[2]), combine_runs(results[1], results[3])])


if __name__ == "__main__":
    main()
