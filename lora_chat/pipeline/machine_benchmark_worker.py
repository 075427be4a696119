"""The process that trains, evaluates and prompts small random models with a base's widths and prints measurements.

Each model runs in a forked child, so that its peak memory is separate.
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
from typing import TYPE_CHECKING

from lora_chat.config.limits import GENERAL_MAX_NEW_TOKENS
from lora_chat.system.console import print_json
from lora_chat.system.memory_usage import peak_process_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from lora_chat.data.encoding.encode import EncodedDialogue
    from lora_chat.pipeline.machine_benchmark import BenchmarkRequest

_NOISE_COUNT = 2**20
"""Number of random values that all weights repeat, because new ones would take longer than the training."""
_PRELOADED_LIBRARIES = ("trl.trainer.sft_trainer", "peft", "bitsandbytes", "datasets")
_CLEAR_REFS_PATH, _PROC_STATUS_PATH = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_PER_LAYER_FIELDS = ("layer_types", "no_rope_layers", "intermediate_size", "activation_sparsity_pattern")
"""Fields of a config that may be lists with one value for each decoder layer."""
_BYTE_KEYS = "rss", "loaded"
_MAX_REPEATS, _REPEAT_LIMIT_SECONDS = 3, 1.0
"""Maximum runs of a timed operation, and seconds after which no further run begins."""
_REPLY_TOKENS = 6
"""Tokens of the longer of two timed replies; the shorter one has one token."""


def make_small_config(config: "Mapping[str, object]", layers: int) -> dict[str, object]:
    """Return the config of the same model with fewer layers, unquantized.

    No other field is added: with a field `layer_types`, even of null, Transformers reads Mistral as Ministral
    (AutoConfig in models/auto/configuration_auto.py).
    """
    from lora_chat.models.architectures import find_architecture

    architecture = find_architecture(str(config.get("model_type")))
    small_config = {**config, architecture.config_name("num_hidden_layers"): layers}
    small_config.pop("quantization_config", None)
    for name in _PER_LAYER_FIELDS:
        values = small_config.get(name)
        if isinstance(values, list):
            small_config[name] = values[:layers]
    if small_config.get("layer_types") is None:
        small_config.pop("layer_types", None)
    return small_config


def write_random_model(config: "Mapping[str, object]", layers: int, folder: Path) -> None:
    """Write a random bf16 model with this many layers in Hugging Face layout."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    (folder / "config.json").write_text(json.dumps(make_small_config(config, layers)), encoding="utf-8")
    model_config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)
    noise = torch.empty(_NOISE_COUNT, dtype=torch.bfloat16).uniform_(-0.03, 0.03)
    weights, seen = {}, set()
    for name, weight in model.named_parameters():
        if id(weight) not in seen:  # a tied weight is saved once
            seen.add(id(weight))
            count = weight.numel()
            values = noise.repeat(-(-count // _NOISE_COUNT))[:count] if count > _NOISE_COUNT else noise[:count].clone()
            # Vectors are norms and biases; ones keep the activations finite.
            weights[name] = (
                torch.ones(weight.shape, dtype=noise.dtype) if weight.dim() == 1 else values.view(weight.shape)
            )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def make_random_rows(
    lengths: "Sequence[int]", share: float, vocabulary: int, prefix: int = 0
) -> "list[EncodedDialogue]":
    """Return random dialogues that share their first `prefix` tokens and whose last `share` is supervised."""
    import random

    from lora_chat.data.encoding.encode import EncodedDialogue

    generator = random.Random(0)
    prefix_ids = [generator.randrange(vocabulary) for _ in range(prefix)]
    rows = []
    for length in lengths:
        shared_ids = prefix_ids[: length - 1]
        ids = shared_ids + [generator.randrange(vocabulary) for _ in range(length - len(shared_ids))]
        unsupervised = min(length - 1, max(1, round(length * (1 - share))))
        rows.append(EncodedDialogue(ids, [-100] * unsupervised + ids[unsupervised:]))
    return rows


def benchmark_layers(request: "BenchmarkRequest", layers: int) -> dict[str, float]:
    """Measure a model with this many layers: seconds of each operation, and peak bytes."""
    from lora_chat.config.plan import PrecisionPlan
    from lora_chat.config.recipe import AdapterSection
    from lora_chat.models.adapter import attach_adapter
    from lora_chat.models.base_model import LocalBase, load_base_model, load_tokenizer
    from lora_chat.models.quantization.cpu_linear import dequantize_on_the_fly
    from lora_chat.models.quantization.weight_cache import disable_weight_cache

    if not request["may_hold"]:
        # These few layers would fit the weight cache, but the whole base does not.
        disable_weight_cache()
    precision = PrecisionPlan.model_validate_json(json.dumps(request["precision"]))
    measured: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_model(request["config"], layers, folder)
        tokenizer = load_tokenizer(LocalBase("", Path(request["tokenizer"])))
        reset_peak_memory()
        started = time.monotonic()
        base = load_base_model(LocalBase("the benchmark", folder), precision, is_random=True)
        model = attach_adapter(base, AdapterSection.model_validate_json(json.dumps(request["adapter"])), 0)
        measured["load"] = time.monotonic() - started
        measured["loaded"] = read_peak_memory()
        measured |= _measure_training(
            request, model, tokenizer, folder / "metrics.jsonl", bfloat16=precision.dtype == "bfloat16"
        )
        # bitsandbytes itself computes the first layer of each kind, which is a third of these few layers.
        dequantize_on_the_fly(model, every_layer=True)
        measured |= _measure_inference(request, model)
    return measured


def _measure_training(
    request: "BenchmarkRequest",
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    metrics: Path,
    *,
    bfloat16: bool,
) -> dict[str, float]:
    """Train a few steps and return the peak bytes and the seconds of a step and of the start."""
    from lora_chat.config.plan import TrainingPlan
    from lora_chat.training.sft import train_sft
    from lora_chat.training.training_run import TrainingRun

    plan = TrainingPlan.model_validate_json(json.dumps(request["training"]))
    rows = make_random_rows(request["lengths"], request["share"], request["vocabulary"], request["prefix"])
    reset_peak_memory()
    started = time.monotonic()
    train_sft(TrainingRun(model, tokenizer, rows, [], plan, metrics, bfloat16))
    total = time.monotonic() - started
    rss = read_peak_memory()
    steps = read_step_times(metrics)
    # The median, because another program may have slowed a step.
    seconds_per_token = statistics.median(seconds / tokens for seconds, tokens in steps)
    return {
        "rss": rss,
        "step": seconds_per_token * statistics.mean(tokens for _, tokens in steps),
        "start": total - sum(seconds for seconds, _ in steps),
    }


def _measure_inference(request: "BenchmarkRequest", model: "PeftModel") -> dict[str, float]:
    """Return the seconds of one evaluated dialogue, of replies to prompts, and of a batch of general items."""
    from lora_chat.evaluation.loss import evaluate_loss

    dialogues = make_random_rows([request["read"]] * 2, request["share"], request["vocabulary"])
    evaluate_loss(model, dialogues[:1])  # warm-up
    measured = {"read": time_fastest(lambda: evaluate_loss(model, dialogues)) / 2}
    if request["prompts"]:
        measured["prefill"], measured["said"] = _measure_replies(request, model, request["prompts"], request["prompt"])
    count, tokens = request["general"]
    if count > request["prompts"]:  # otherwise the planner derives it from the replies above
        prefill, token_seconds = _measure_replies(request, model, count, tokens)
        measured["general"] = prefill + (GENERAL_MAX_NEW_TOKENS - 1) * token_seconds
    return measured


def _measure_replies(request: "BenchmarkRequest", model: "PeftModel", count: int, tokens: int) -> tuple[float, float]:
    """Return the seconds of a prefill of prompts of one length, and of one more token of each reply."""
    from lora_chat.inference.generation import generate_ids

    rows = make_random_rows([tokens] * count, 0.5, request["vocabulary"])
    prompts = [row.input_ids for row in rows]
    generate_ids(model, 0, prompts, [], 1)  # warm-up
    prefill = time_fastest(lambda: generate_ids(model, 0, prompts, [], 1))
    reply = time_fastest(lambda: generate_ids(model, 0, prompts, [], _REPLY_TOKENS))
    return prefill, max(0.0, reply - prefill) / (_REPLY_TOKENS - 1)


def time_fastest(operation: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few runs, because load on the machine only slows a run."""
    seconds: list[float] = []
    while len(seconds) < _MAX_REPEATS and sum(seconds) < _REPEAT_LIMIT_SECONDS:
        started = time.monotonic()
        operation()
        seconds.append(time.monotonic() - started)
    return min(seconds)


def reset_peak_memory() -> None:
    """Reset the peak memory of this process, because writing a small model can take more than training it."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS_PATH.write_text("5", encoding="ascii")  # proc(5)


def read_peak_memory() -> float:
    """Return the peak bytes of this process since the last reset."""
    try:
        lines = _PROC_STATUS_PATH.read_text(encoding="ascii", errors="replace").splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return float(peak_process_bytes())


def read_step_times(metrics: Path) -> list[tuple[float, int]]:
    """Return seconds and supervised tokens of every step."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    ends = [(0.0, 0), *((row["seconds"], row["supervised_tokens"]) for row in rows)]
    return [(end[0] - begin[0], end[1] - begin[1]) for begin, end in pairwise(ends)]


def combine_runs(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Combine two runs: keep the shorter times, because load only slows a run, and the higher memory."""
    return {name: (max if name in _BYTE_KEYS else min)(value, second[name]) for name, value in first.items()}


def main() -> None:
    """Read a request from stdin and print the measurements of both models."""
    request = json.load(sys.stdin)
    for name in _PRELOADED_LIBRARIES:  # before the forks, which inherit them
        importlib.import_module(name)
    few, more = request["layers"]
    results = []
    for layers in (few, more) * 2:
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
