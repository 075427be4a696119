"""Estimate and train one setting on an emulated card, after its turn: `plan_setting.py SETTING SIZE FOLDER`.

With a setting of None the memory of the card is set so that the first micro-batch does not fit and a smaller one does.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turn_gate import reserve_stdout, send, wait_for_turn

from lora_chat.system.operating_system import let_segments_grow

reserve_stdout()
let_segments_grow(os.environ)  # as the command line does

import numpy as np  # noqa: E402
import torch  # noqa: E402
from card_memory import leave_free  # noqa: E402
from check_sizes import PlanSetting, find_size  # noqa: E402
from random_models import load_random_base  # noqa: E402
from step_gradients import collected_notes  # noqa: E402

from lora_chat.config.plan import Plan, make_plan  # noqa: E402
from lora_chat.config.recipe import Recipe  # noqa: E402
from lora_chat.data.lengths import DataLengths, RowLengths  # noqa: E402
from lora_chat.errors import OutOfMemoryError  # noqa: E402
from lora_chat.models.adapter import attach_adapter  # noqa: E402
from lora_chat.models.base_model import LocalBase, load_tokenizer  # noqa: E402
from lora_chat.models.shape import read_shape  # noqa: E402
from lora_chat.pipeline.machine_benchmark_worker import make_random_rows, read_step_times  # noqa: E402
from lora_chat.planning.estimate import judge_fit, make_estimate  # noqa: E402
from lora_chat.planning.local_device import detect_local_device  # noqa: E402
from lora_chat.planning.settings_search import PlanningProblem  # noqa: E402
from lora_chat.system.hardware import detect_hardware  # noqa: E402
from lora_chat.system.memory_limit import is_out_of_memory  # noqa: E402
from lora_chat.training.sft import train_sft  # noqa: E402
from lora_chat.training.training_run import TrainingRun  # noqa: E402

_STEPS = 5
_WARMUP = 2
_ROOM_BYTES = 90 * 2**30
"""Memory of a card, in bytes, on which all settings fit at the same time."""
_STEP_DOWN_ROWS = 32
_STEP_DOWN_FACTOR = 1.2
"""Free memory of the step-down, relative to the peak with a quarter of the tokens."""
_SUPERVISED_SHARE = 0.5


def main() -> None:
    """Run the setting and send the outcome, or the error."""
    setting_text, size_name, folder = sys.argv[1:]
    try:
        setting = json.loads(setting_text)
        if setting is None:
            step_down(find_size(size_name).step_down[1], Path(folder))
        else:
            compare(PlanSetting(**setting), Path(folder))
    except Exception as error:  # the parent prints it
        text = (str(error).strip() or "no message").splitlines()[0]
        send(error=f"{type(error).__name__}: {text}"[:300])
        raise


def plan_setting(setting: PlanSetting) -> Plan:
    """Return the plan of a setting."""
    training = {
        "effective_batch_size": setting.rows,
        "micro_batch_size": setting.rows,
        "max_steps": _STEPS,
        "gradient_checkpointing": setting.checkpointed,
        "fast_path": setting.fast,
        "optimizer": "adamw",
        "learning_rate": 1e-9,
    }
    recipe = {"data": {"train": "random"}, "quantization": {"mode": setting.mode}, "training": training}
    return make_plan(Recipe.model_validate(recipe), detect_hardware())


def describe_lengths(rows: Sequence[Any]) -> DataLengths:
    """Return the lengths of random rows, for the estimate."""
    counts = np.array([len(row.input_ids) for row in rows])
    lengths = RowLengths(counts, counts, np.array([row.supervised_tokens for row in rows]))
    return DataLengths(lengths, lengths, (), 1)


def compare(setting: PlanSetting, folder: Path) -> None:
    """Estimate the training phase, train a few steps, and send both."""
    plan = plan_setting(setting)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = read_shape(config, setting.shape)
    rows = make_random_rows([setting.length] * setting.rows * _STEPS, _SUPERVISED_SHARE, shape.vocab_size)
    send(preparing=True)
    model = load_model(folder, plan) if has_room_for_all() else None
    if not wait_for_turn(ready=True):
        return
    target = detect_local_device(detect_hardware())
    problem = PlanningProblem(shape, describe_lengths(rows), target)
    estimate = make_estimate(plan, problem, base=setting.shape, origin="", weight_bytes=0, download_bytes=0)
    phase = next(phase for phase in estimate.phases if phase.name == "train")
    outcome: dict[str, Any] = {"planned": phase.total, "verdict": judge_fit(phase.total, target.free)}
    if estimate.durations:
        seconds = estimate.durations["train"]
        outcome |= {"planned_step": [s / _STEPS for s in (seconds.likely, seconds.low, seconds.high)]}
    try:
        model = model or load_model(folder, plan)
        torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as temporary, collected_notes() as notes:
            metrics = Path(temporary) / "metrics.jsonl"
            train_sft(make_run(model, folder, rows, plan, metrics))
            steps = [seconds for seconds, _ in read_step_times(metrics)][_WARMUP:]
        outcome |= {
            "step_seconds": sum(steps) / len(steps),
            "reserved": torch.cuda.max_memory_reserved() + target.context,
            "allocated": torch.cuda.max_memory_allocated() + target.context,
            "notes": [note for note in notes if "slower" in note or "memory" in note],
        }
    except (RuntimeError, OutOfMemoryError) as error:
        if not isinstance(error, OutOfMemoryError) and not is_out_of_memory(error):
            raise
        outcome["out_of_memory"] = True
    send(**outcome)


def has_room_for_all() -> bool:
    """Return whether all settings fit on the card at the same time, so that they can load before their turn."""
    return bool(torch.cuda.get_device_properties(0).total_memory > _ROOM_BYTES)


def load_model(folder: Path, plan: Plan) -> Any:
    """Load the random base and attach an adapter."""
    model = attach_adapter(load_random_base(folder, plan.precision), plan.adapter, 0)
    torch.cuda.empty_cache()  # blocks that only the building needed
    return model


def make_run(
    model: Any, folder: Path, rows: Sequence[Any], plan: Plan, metrics: Path, adjustable: Sequence[str] = ()
) -> TrainingRun:
    """Return the input of a training."""
    return TrainingRun(
        model=model,
        tokenizer=load_tokenizer(LocalBase("random", folder)),
        train_rows=rows,
        validation_rows=[],
        plan=plan.training,
        metrics_path=metrics,
        bfloat16=plan.precision.dtype == "bfloat16",
        float16=plan.precision.dtype == "float16",
        adjustable_settings=adjustable,
    )


def step_down(tokens: int, folder: Path) -> None:
    """Train with a micro-batch that does not fit, and send the messages and the plan that was trained."""
    training = {
        "effective_batch_size": _STEP_DOWN_ROWS,
        "micro_batch_tokens": tokens,
        "max_steps": 1,
        "gradient_checkpointing": False,
        "fast_path": True,
        "learning_rate": 1e-9,
    }
    recipe = {"data": {"train": "random"}, "quantization": {"mode": "none"}, "training": training}
    plan = make_plan(Recipe.model_validate(recipe), detect_hardware())
    shape = read_shape(json.loads((folder / "config.json").read_text(encoding="utf-8")), "")
    rows = make_random_rows([tokens // _STEP_DOWN_ROWS] * _STEP_DOWN_ROWS, _SUPERVISED_SHARE, shape.vocab_size)
    send(preparing=True)
    if not wait_for_turn(ready=True):
        return
    model = load_model(folder, plan)
    with tempfile.TemporaryDirectory() as temporary, collected_notes() as notes:
        run = make_run(
            model, folder, rows, plan, Path(temporary) / "metrics.jsonl", ("micro_batch_tokens", "micro_batch_size")
        )
        # Leave a little more than a quarter of the micro-batch needs.
        torch.cuda.reset_peak_memory_stats()
        train_sft(run.with_plan(plan.training.model_copy(update={"micro_batch_tokens": tokens // 4})))
        peak = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        leave_free(int(_STEP_DOWN_FACTOR * peak))
        result = train_sft(run)
    send(asked=tokens, trained=result.plan.micro_batch_tokens, notes=[note for note in notes if "memory" in note])


if __name__ == "__main__":
    main()
