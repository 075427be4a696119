"""What can be done with a finished run: measure it again, merge it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_chat.console import say, shown
from lora_chat.delivery.merge import Mixture, merge
from lora_chat.delivery.probes import make_probes
from lora_chat.delivery.proof_text import proof_line
from lora_chat.errors import RecipeError
from lora_chat.models.adapter_folder import is_adapter, read_adapter
from lora_chat.models.loading import find_adapter
from lora_chat.pipeline import compare_run, headline
from lora_chat.planning.hardware import detect_hardware
from lora_chat.planning.plan import PrecisionPlan, make_precision
from lora_chat.preparation import Prepared, prepare_held_out
from lora_chat.run_folder import RunFolder, open_run_folder


def evaluate_run(path: str) -> dict[str, Any]:
    """Compare base and adapted once more; needs nothing but the run's folder and its base."""
    run = _finished(path)
    plan = run.read_plan()
    found = find_adapter(read_adapter(run.adapter), say, own_template=True)
    prepared = prepare_held_out(plan, run, say)
    model = found.load(_precision(run))
    return {"run": str(run.path), **headline(compare_run(model, prepared, plan.evaluation, run))}


def merge_runs(
    paths: Sequence[str], weights: Sequence[float] | None, to: Path, *, original: bool, accept: bool
) -> dict[str, Any]:
    """Merge the adapters of one or several runs and prove the result on the first run's held-out dialogues."""
    mixture, prepared = open_mixture(paths, weights)
    report = merge(mixture, make_probes(prepared.validation), to, say, original=original, accept=accept)
    say(f"Merged into {shown(to.absolute())}. {proof_line(report)}")
    return {"merged": str(to.absolute()), "proof": report.as_dict()}


def open_mixture(paths: Sequence[str], weights: Sequence[float] | None) -> tuple[Mixture, Prepared]:
    """The adapters of some runs, and what the first run holds out."""
    runs = [_finished(path) for path in paths]
    if weights is not None and len(weights) != len(runs):
        raise RecipeError(f"--weights has {len(weights)} numbers for {len(runs)} runs; give one for each.")
    found = [find_adapter(read_adapter(run.adapter), say, own_template=True) for run in runs]
    prepared = prepare_held_out(runs[0].read_plan(), runs[0], say)
    mixture = Mixture(
        adapters=tuple(zip(found, weights or [1.0] * len(found), strict=True)),
        precision=_precision(runs[0]),
        stop_ids=tuple(prepared.stop_ids),
    )
    return mixture, prepared


def _finished(path: str) -> RunFolder:
    run = open_run_folder(path)
    if not is_adapter(run.adapter):
        raise RecipeError(f"The run {path} has no adapter: its training did not get that far.")
    return run


def _precision(run: RunFolder) -> PrecisionPlan:
    return make_precision(run.read_quantization(), detect_hardware())
