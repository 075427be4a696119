"""This machine's pace and memory habits, tried once for each shape in a process of its own, and kept."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_chat.config.plan import Plan
from lora_chat.config.recipe import BaseSection
from lora_chat.data.lengths import DataLengths, RowLengths
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
"""Of the layers of the larger model: enough to see what grows, few enough for seconds."""
MIN_BASE_WEIGHTS = 20_000_000
"""Weights of a base below which it is not worth the seconds."""
_MAX_QUICK_BASE_WEIGHTS = 1_000_000_000
"""Of one that is tried where an answer is awaited in seconds; a larger one takes a minute or two."""
_DEFAULT_MICRO_BATCH_TOKENS = 2048
"""Of a micro-batch whose tokens are not bounded."""
_REQUIRED_KEYS = {"rss", "loaded", "load", "step", "start", "read"}
"""Without one of them a stored probe is damaged."""
_BENCHMARK_VERSION = 2
"""Of what a probe measures, and how: those of another one are not used."""
_TIMEOUT_SECONDS = 600
"""Seconds; on a machine that needs more, nothing is known beforehand."""


def benchmark_machine(
    plan: Plan,
    problem: PlanningProblem,
    config: Mapping[str, Any],
    folder: Path | None,
    *,
    allow_slow: bool,
) -> MachineBenchmark | None:
    """What small models of a job's widths take here; None where that was not worth it, or failed.

    Without patience, large bases are not tried anew.
    """
    if problem.target.device != "cpu" or not problem.target.at_hand or problem.shape.weights < MIN_BASE_WEIGHTS:
        return None
    request, lengths = _make_request(plan, problem, config)
    key = json.dumps([_BENCHMARK_VERSION, request, read_library_versions(), problem.target.name], sort_keys=True)
    path = cache_dir("probes") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    measured = _read_cached_result(path)
    if measured is None:
        if problem.shape.weights > _MAX_QUICK_BASE_WEIGHTS and not allow_slow:
            return None
        logger.info("Trying this machine on small models of the base's widths, once (half a minute)")
        tokenizer = folder or find_base(BaseSection(name="tiny-random")).folder
        measured = _run_benchmark({**request, "tokenizer": str(tokenizer)})
        if measured is None:
            logger.info("That did not work; the plan goes on without it.")
            return None
        write_text_atomically(path, json.dumps(measured), "the probe")
    work = compute_workload(
        _make_data_lengths(lengths, request["share"], request["prefix"]),
        _make_training_plan(plan, len(lengths) // _BENCHMARK_STEPS),
    )
    return MachineBenchmark(_choose_layer_counts(problem.shape), (measured[0], measured[1]), work, int(request["read"]))


def _choose_layer_counts(shape: ModelShape) -> tuple[int, int]:
    """Of both models."""
    weights_per_layer = shape.num_linear_weights // shape.num_layers
    layer_count = max(3, min(shape.num_layers // 3, _LARGER_MODEL_WEIGHTS // weights_per_layer))
    return max(1, layer_count // 3), layer_count


def _make_request(plan: Plan, problem: PlanningProblem, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[int]]:
    train = problem.data.train
    row_lengths = (train.through_last_label if plan.training.fast_path else train.tokens).tolist()
    max_tokens = 2 * (plan.training.micro_batch_tokens or _DEFAULT_MICRO_BATCH_TOKENS)
    rows, lengths = choose_benchmark_rows(row_lengths, plan.training.effective_batch_size, max_tokens, _BENCHMARK_STEPS)
    share = float(train.supervised.sum() / train.through_last_label.sum())
    validation = problem.data.validation.tokens
    return {
        "layers": _choose_layer_counts(problem.shape),
        "may_hold": fits_weight_cache(problem.shape, memory_config_from_plan(plan, problem.shape)),
        "config": {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")},
        "precision": plan.precision.model_dump(mode="json"),
        "adapter": plan.adapter.model_dump(mode="json"),
        "training": _make_training_plan(plan, rows).model_dump(mode="json"),
        "lengths": lengths,
        "share": share,
        "prefix": problem.data.shared_prefix if plan.training.fast_path else 0,
        "vocabulary": problem.shape.vocab_size,
        "read": max(2, int(validation.mean())),
        "prompt": max(problem.data.prompt_tokens, default=1),
        "prompts": min(40, len(problem.data.prompt_tokens)),
    }, lengths


def _make_training_plan(plan: Plan, rows: int) -> Any:
    """A few steps of so many rows."""
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
        }
    )


def _make_data_lengths(lengths: list[int], share: float, prefix: int) -> DataLengths:
    import numpy as np

    tokens = np.asarray(lengths)
    rows = RowLengths(tokens, tokens, np.maximum(1, np.rint(tokens * share).astype(int)))
    return DataLengths(rows, rows, (), 1, prefix)


def _read_cached_result(path: Path) -> list[dict[str, float]] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_valid = isinstance(found, list) and len(found) == 2 and all(set(figures) >= _REQUIRED_KEYS for figures in found)
    return found if is_valid else None


def _run_benchmark(request: dict[str, Any]) -> list[dict[str, float]] | None:
    try:
        done = run_worker(
            "lora_chat.pipeline.machine_benchmark_worker", stdin=json.dumps(request), timeout=_TIMEOUT_SECONDS
        )
        return list(json.loads(done.stdout)) if not done.exit_code else None
    except (ValueError, OSError):
        return None
