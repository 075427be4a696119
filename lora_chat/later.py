"""What can be done with a finished run: measure it again, merge it."""

from pathlib import Path
from typing import Any

from lora_chat.console import say, shown
from lora_chat.delivery.merge import merge
from lora_chat.errors import RecipeError
from lora_chat.models.adapter_folder import is_adapter, read_adapter
from lora_chat.models.loading import find_adapter
from lora_chat.pipeline import compare_run, headline
from lora_chat.planning.hardware import detect_hardware
from lora_chat.planning.plan import PrecisionPlan, make_precision
from lora_chat.preparation import prepare_held_out
from lora_chat.run_folder import RunFolder, open_run_folder

_PROBES = 8
"""Held-out dialogues on which a merged model is compared with the adapted one."""


def evaluate_run(path: str) -> dict[str, Any]:
    """Compare base and adapted once more; needs nothing but the run's folder and its base."""
    run = _finished(path)
    plan = run.read_plan()
    found = find_adapter(read_adapter(run.adapter), say, own_template=True)
    prepared = prepare_held_out(plan, run, say)
    model = found.load(_precision(run))
    return {"run": str(run.path), **headline(compare_run(model, prepared, plan.evaluation, run))}


def merge_run(path: str, to: Path) -> dict[str, Any]:
    """Merge a run's adapter and prove the result on the run's held-out dialogues."""
    run = _finished(path)
    found = find_adapter(read_adapter(run.adapter), say, own_template=True)
    prepared = prepare_held_out(run.read_plan(), run, say)
    probes = [row.input_ids for row in prepared.validation.rows[:_PROBES]]
    report = merge(found, _precision(run), prepared.stop_ids, probes, to, say)
    say(
        f"Merged into {shown(to.absolute())}. Against the adapted model on {report.tokens} tokens: mean KL "
        f"{report.mean_kl:.1e} nats, largest {report.largest_kl:.1e}, same top token {report.same_top_token:.1%}"
    )
    return {"merged": str(to.absolute()), "proof": report.as_dict()}


def _finished(path: str) -> RunFolder:
    run = open_run_folder(path)
    if not is_adapter(run.adapter):
        raise RecipeError(f"The run {path} has no adapter: its training did not get that far.")
    return run


def _precision(run: RunFolder) -> PrecisionPlan:
    return make_precision(run.read_quantization(), detect_hardware())
