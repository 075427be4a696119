"""This machine's pace and memory habits, tried once for each shape in a process of its own, and kept."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lora_chat.config.plan import Plan
from lora_chat.config.recipe import BaseSection
from lora_chat.data.lengths import DataLengths, Lengths
from lora_chat.models.base_model import find_base
from lora_chat.models.shape import ModelShape
from lora_chat.planning.calibration import Probe, probe_rows
from lora_chat.planning.settings_search import Job, make_setting
from lora_chat.planning.training_memory import holds_values
from lora_chat.planning.workload import make_workload
from lora_chat.runs.run_folder import library_versions
from lora_chat.system.atomic_write import write_text_whole
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.worker import run_worker

_STEPS = 3
_WEIGHTS = 160_000_000
"""Of the layers of the larger model: enough to see what grows, few enough for seconds."""
SMALLEST = 20_000_000
"""Weights of a base below which it is not worth the seconds."""
_LARGEST_AT_ONCE = 1_000_000_000
"""Of one that is tried where an answer is awaited in seconds; a larger one takes a minute or two."""
_MOST_TOKENS = 2048
"""Of a micro-batch whose tokens are not bounded."""
_FIGURES = {"rss", "loaded", "load", "step", "start", "read"}
"""Without one of them a stored probe is damaged."""
_VERSION = 2
"""Of what a probe measures, and how: those of another one are not used."""
_PATIENCE = 600
"""Seconds; on a machine that needs more, nothing is known beforehand."""


def find_probe(
    plan: Plan,
    job: Job,
    config: Mapping[str, Any],
    folder: Path | None,
    notice: Callable[[str], None],
    *,
    patient: bool,
) -> Probe | None:
    """What small models of a job's widths take here; None where that was not worth it, or failed.

    Without patience, large bases are not tried anew.
    """
    if job.target.device != "cpu" or not job.target.at_hand or job.shape.weights < SMALLEST:
        return None
    request, lengths = _make_request(plan, job, config)
    key = json.dumps([_VERSION, request, library_versions(), job.target.name], sort_keys=True)
    path = cache_dir("probes") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    taken = _read(path)
    if taken is None:
        if job.shape.weights > _LARGEST_AT_ONCE and not patient:
            return None
        notice("Trying this machine on small models of the base's widths, once (half a minute)")
        tokenizer = folder or find_base(BaseSection(name="tiny-random"), notice).folder
        taken = _run({**request, "tokenizer": str(tokenizer)})
        if taken is None:
            notice("That did not work; the plan goes on without it.")
            return None
        write_text_whole(path, json.dumps(taken), "the probe")
    work = make_workload(
        _as_data(lengths, request["share"], request["prefix"]), _training(plan, len(lengths) // _STEPS)
    )
    return Probe(_layers(job.shape), (taken[0], taken[1]), work, int(request["read"]))


def _layers(shape: ModelShape) -> tuple[int, int]:
    """Of both models."""
    each = shape.linear_weights // shape.layer_count
    some = max(3, min(shape.layer_count // 3, _WEIGHTS // each))
    return max(1, some // 3), some


def _make_request(plan: Plan, job: Job, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[int]]:
    train = job.data.train
    known = (train.trained if plan.training.fast_path else train.tokens).tolist()
    most = 2 * (plan.training.micro_batch_tokens or _MOST_TOKENS)
    rows, lengths = probe_rows(known, plan.training.effective_batch_size, most, _STEPS)
    share = float(train.supervised.sum() / train.trained.sum())
    validation = job.data.validation.tokens
    return {
        "layers": _layers(job.shape),
        "may_hold": holds_values(job.shape, make_setting(plan, job.shape)),
        "config": {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")},
        "precision": plan.precision.model_dump(mode="json"),
        "adapter": plan.adapter.model_dump(mode="json"),
        "training": _training(plan, rows).model_dump(mode="json"),
        "lengths": lengths,
        "share": share,
        "prefix": job.data.shared_prefix if plan.training.fast_path else 0,
        "vocabulary": job.shape.vocabulary,
        "read": max(2, int(validation.mean())),
        "prompt": max(job.data.prompts, default=1),
        "prompts": min(40, len(job.data.prompts)),
    }, lengths


def _training(plan: Plan, rows: int) -> Any:
    """A few steps of so many rows."""
    training = plan.training
    size = min(training.micro_batch_size, rows)
    return training.model_copy(
        update={
            "max_steps": _STEPS,
            "epochs": 1.0,
            "effective_batch_size": rows,
            "micro_batch_size": size,
            "gradient_accumulation_steps": -(-rows // size),
            "memory": "unlimited",
        }
    )


def _as_data(lengths: list[int], share: float, prefix: int) -> DataLengths:
    import numpy as np

    tokens = np.asarray(lengths)
    rows = Lengths(tokens, tokens, np.maximum(1, np.rint(tokens * share).astype(int)))
    return DataLengths(rows, rows, (), 1, prefix)


def _read(path: Path) -> list[dict[str, float]] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    good = isinstance(found, list) and len(found) == 2 and all(set(taken) >= _FIGURES for taken in found)
    return found if good else None


def _run(request: dict[str, Any]) -> list[dict[str, float]] | None:
    try:
        done = run_worker("lora_chat.pipeline.machine_benchmark_worker", given=json.dumps(request), timeout=_PATIENCE)
        return list(json.loads(done.stdout)) if not done.exit_code else None
    except (ValueError, OSError):
        return None
