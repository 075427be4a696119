"""Times and memory of small models on this machine, measured in another process and cached."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from typing_extensions import NotRequired, TypedDict

from lora_chat.config.plan import Plan, TrainingPlan
from lora_chat.config.recipe import BaseSection
from lora_chat.data.lengths import DataLengths, RowLengths
from lora_chat.inference.generation import MAX_BATCH_SIZE
from lora_chat.models.base_model import find_base
from lora_chat.models.shape import ModelShape
from lora_chat.planning.calibration import MachineBenchmark, choose_benchmark_rows
from lora_chat.planning.settings_search import PlanningProblem, memory_config_from_plan
from lora_chat.planning.weight_memory import fits_weight_cache
from lora_chat.planning.workload import compute_workload
from lora_chat.runs.create_run import read_library_versions
from lora_chat.system.atomic_write import write_text_atomically
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.worker import run_worker

logger = logging.getLogger(__name__)

_BENCHMARK_STEPS = 3
_LARGER_MODEL_WEIGHTS = 160_000_000
"""Maximum linear weights of the larger model: enough to see the growth, few enough to take seconds."""
MIN_BASE_WEIGHTS = 20_000_000
"""Smallest base, in weights, that is worth the seconds of a benchmark."""
_MAX_QUICK_BASE_WEIGHTS = 1_000_000_000
"""Largest base, in weights, that `plan` benchmarks; larger ones take minutes."""
_DEFAULT_MICRO_BATCH_TOKENS = 2048
"""Tokens of a benchmarked micro-batch if the plan does not limit them."""
_REQUIRED_KEYS = {"rss", "loaded", "load", "step", "start", "read"}
"""Keys of a valid cached result."""
_BENCHMARK_VERSION = 4
"""Version of the measurements; cached results of another version are not used."""
_TIMEOUT_SECONDS = 600
"""Benchmark timeout, in seconds; a slower machine gets no benchmark."""


class BenchmarkRequest(TypedDict):
    """The request to the worker."""

    layers: tuple[int, int]
    may_hold: bool
    """Whether the dequantized weights of the whole base fit the weight cache."""
    config: dict[str, object]
    precision: dict[str, object]
    adapter: dict[str, object]
    training: dict[str, object]
    lengths: list[int]
    """Tokens of each training row."""
    share: float
    """Share of supervised tokens."""
    prefix: int
    """Tokens of the prefix that all rows share."""
    vocabulary: int
    read: int
    """Tokens of an evaluated dialogue."""
    prompt: int
    """Tokens of a prompt."""
    prompts: int
    general: tuple[int, int]
    """Number of general items in a batch, and tokens of the longest."""
    tokenizer: NotRequired[str]
    """Folder of the tokenizer."""


def benchmark_machine(
    plan: Plan,
    problem: PlanningProblem,
    config: Mapping[str, object],
    folder: Path | None,
    *,
    allow_slow: bool,
    cached_only: bool = False,
) -> MachineBenchmark | None:
    """Measure small models with the widths of a base on this machine, or return the cached measurements.

    Return None if the base is too small, if it is large and not `allow_slow`, if the benchmark failed, or with
    `cached_only` without measurements.
    """
    if problem.target.device != "cpu" or not problem.target.at_hand or problem.shape.weights < MIN_BASE_WEIGHTS:
        return None
    import torch

    request, lengths = _make_request(plan, problem, config)
    # Each of several processes has a part of the cores, and so has the benchmark that one of them starts.
    machine = [problem.target.name, torch.get_num_threads()]
    key = json.dumps([_BENCHMARK_VERSION, request, read_library_versions(), *machine], sort_keys=True)
    path = cache_dir("probes") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    measured = _read_cached_result(path)
    if measured is None and cached_only:
        return None
    if measured is None:
        if problem.shape.weights > _MAX_QUICK_BASE_WEIGHTS and not allow_slow:
            return None
        logger.info("Benchmarking this machine with small models of the base's widths (once, half a minute)")
        tokenizer = folder or find_base(BaseSection(name="tiny-random")).folder
        measured = _run_benchmark({**request, "tokenizer": str(tokenizer)})
        if measured is None:
            logger.info("The benchmark failed; the estimate does without it.")
            return None
        write_text_atomically(path, json.dumps(measured), "the benchmark")
    workload = compute_workload(
        _make_data_lengths(lengths, request["share"], request["prefix"]),
        _make_training_plan(plan, len(lengths) // _BENCHMARK_STEPS),
    )
    return MachineBenchmark(
        _choose_layer_counts(problem.shape), (measured[0], measured[1]), workload, int(request["read"])
    )


def _choose_layer_counts(shape: ModelShape) -> tuple[int, int]:
    """Return the number of layers of the smaller and the larger model."""
    weights_per_layer = shape.num_linear_weights // shape.num_layers
    layer_count = max(3, min(shape.num_layers // 3, _LARGER_MODEL_WEIGHTS // weights_per_layer))
    return max(1, layer_count // 3), layer_count


def _make_request(
    plan: Plan, problem: PlanningProblem, config: Mapping[str, object]
) -> tuple[BenchmarkRequest, list[int]]:
    """Return the request for the worker, and the lengths of its rows."""
    train = problem.data.train
    row_lengths = (train.through_last_label if plan.training.fast_path else train.tokens).tolist()
    max_tokens = 2 * (plan.training.micro_batch_tokens or _DEFAULT_MICRO_BATCH_TOKENS)
    rows, lengths = choose_benchmark_rows(row_lengths, plan.training.effective_batch_size, max_tokens, _BENCHMARK_STEPS)
    share = float(train.supervised.sum() / train.through_last_label.sum())
    return {
        "layers": _choose_layer_counts(problem.shape),
        "may_hold": fits_weight_cache(problem.shape, memory_config_from_plan(plan, problem.shape)),
        "config": {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")},
        "precision": plan.precision.model_dump(mode="json"),
        "adapter": plan.adapter.without_layers().model_dump(mode="json"),
        "training": _make_training_plan(plan, rows).model_dump(mode="json"),
        "lengths": lengths,
        "share": share,
        "prefix": problem.data.shared_prefix if plan.training.fast_path else 0,
        "vocabulary": problem.shape.vocab_size,
        "read": max(2, int(problem.data.compared.mean_tokens)),
        "prompt": max(problem.data.prompt_tokens, default=1),
        "prompts": min(40, len(problem.data.prompt_tokens)),
        "general": (
            min(MAX_BATCH_SIZE, max(problem.data.general_counts, default=0)),
            max(problem.data.general_prompt_tokens, default=1),
        ),
    }, lengths


def _make_training_plan(plan: Plan, rows: int) -> TrainingPlan:
    """Return a training plan of a few steps with this many rows each."""
    training = plan.training
    size = min(training.micro_batch_size, rows)
    return training.model_copy(
        update={
            "max_steps": _BENCHMARK_STEPS,
            "epochs": 1.0,
            "effective_batch_size": rows,
            "micro_batch_size": size,
            "gradient_accumulation_steps": -(-rows // size),
            "memory": "unlimited",
            "warmup_steps": None,
        }
    )


def _make_data_lengths(lengths: list[int], share: float, prefix: int) -> DataLengths:
    """Return the lengths of the benchmark's rows."""
    import numpy as np

    tokens = np.asarray(lengths)
    rows = RowLengths(tokens, tokens, np.maximum(1, np.rint(tokens * share).astype(int)))
    return DataLengths(rows, rows, (), 1, prefix)


def _read_cached_result(path: Path) -> list[dict[str, float]] | None:
    """Read the cached measurements of both models; None if they are missing or damaged."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_valid = (
        isinstance(results, list) and len(results) == 2 and all(set(result) >= _REQUIRED_KEYS for result in results)
    )
    return results if is_valid else None


def _run_benchmark(request: BenchmarkRequest) -> list[dict[str, float]] | None:
    """Run the worker; return None if it fails or takes too long."""
    try:
        done = run_worker(
            "lora_chat.pipeline.machine_benchmark_worker", stdin=json.dumps(request), timeout=_TIMEOUT_SECONDS
        )
        return list(json.loads(done.stdout)) if not done.exit_code else None
    except (ValueError, OSError):
        return None
