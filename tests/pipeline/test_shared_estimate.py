"""The estimate of a run of several processes, and the settings that it chooses."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_chat.config.load import read_recipe
from lora_chat.config.plan import make_plan
from lora_chat.errors import OutOfMemoryError
from lora_chat.pipeline import estimate as pipeline_estimate
from lora_chat.pipeline import machine_benchmark
from lora_chat.pipeline.estimate import resolve_plan
from lora_chat.pipeline.prepare import prepare_run
from lora_chat.pipeline.run_identity import describe_run
from lora_chat.pipeline.shard_choice import settle_sharding
from lora_chat.planning.device import DeviceSpeed, TargetDevice
from lora_chat.planning.estimate import Suggestion
from lora_chat.planning.format import format_estimate_summary
from lora_chat.planning.local_device import detect_local_device
from lora_chat.processes.group import ProcessGroup, use_group
from lora_chat.processes.rank import Rank
from lora_chat.system.hardware import Hardware
from lora_chat.system.memory_limit import limited_memory

CPU = Hardware("cpu", "x", 2**34, True, 2)
SPEED = DeviceSpeed(1e9, 1e9, 1e-6, 0.5, 1, "made up")


def group_of(count):
    group = ProcessGroup()
    group.rank = Rank(0, count, 0, count)
    return group


@pytest.fixture(scope="module")
def prepared(cache_home):
    plan = make_plan(read_recipe(Path("recipes/smoke.yaml"), []), CPU)
    return plan, prepare_run(plan)


@pytest.fixture
def resolve(prepared, monkeypatch):
    """Return a function that resolves the plan of a run of `count` processes with `free` bytes for each."""

    def resolve(count, free=2**32, earlier=None, plan=prepared[0]):
        given = []

        def detect(hardware, processes=1):
            given.append(processes)
            return TargetDevice("cpu", "x", 2**34, free, 10**8, at_hand=True, speed=SPEED)

        monkeypatch.setattr(pipeline_estimate, "detect_local_device", detect)
        monkeypatch.setattr(pipeline_estimate, "detect_hardware", lambda device: CPU)
        run = SimpleNamespace(read_plan=lambda: earlier) if earlier else None
        with use_group(group_of(count)):
            resolved = resolve_plan(plan, prepared[1], run, 0.0)
        assert given == [count]
        return resolved

    return resolve


def test_a_run_may_be_continued_with_another_number_of_processes(prepared, resolve):
    """Its identity has the settings of the micro-batches."""
    identities = [describe_run(resolve(count)[0], prepared[1], {}) for count in (1, 2, 3)]
    assert identities[0] == identities[1] == identities[2]
    chosen = resolve(3, free=400_000_000)[0]  # less memory than the others
    for count in (1, 2, 3):
        again = resolve(count, earlier=chosen)[0]
        assert describe_run(again, prepared[1], {}) == describe_run(chosen, prepared[1], {})


def test_the_time_of_a_run_is_shared_and_its_steps_are_not(resolve):
    alone, shared = resolve(1)[1], resolve(2)[1]
    assert shared.durations["train"].likely < 0.75 * alone.durations["train"].likely
    assert shared.workload.steps == alone.workload.steps
    assert shared.workload.step_tokens == alone.workload.step_tokens
    assert alone.own_step_tokens / 2 <= shared.own_step_tokens < alone.own_step_tokens
    assert shared.general_items == alone.general_items
    assert shared.plan.evaluation == alone.plan.evaluation
    lines = format_estimate_summary(shared)
    assert any(line.startswith("Processes 2, each with the whole base") for line in lines)
    assert not any(line.startswith("Processes") for line in format_estimate_summary(alone))


def test_sharding_is_settled_with_the_plan(prepared, resolve, monkeypatch):
    assert prepared[0].base.shard == "auto"
    for count in (1, 2):
        assert resolve(count)[0].base.shard is False
    monkeypatch.setattr(pipeline_estimate, "choose_sharding", lambda plan, problem: True)
    plan, estimate = resolve(2)
    assert plan.base.shard is True
    assert estimate.layout.sharded
    assert any("its part of the base" in line for line in format_estimate_summary(estimate))
    whole = prepared[0].model_copy(update={"base": prepared[0].base.model_copy(update={"shard": False})})
    assert resolve(2, plan=whole)[0].base.shard is False
    assert resolve(2, plan=settle_sharding(plan, 2))[0].base.shard is True
    assert settle_sharding(plan, 1).base.shard is False


def test_processes_that_do_not_fit_are_told_to_be_fewer(resolve):
    with pytest.raises(OutOfMemoryError, match="Or with fewer than 3 processes"):
        resolve(3, free=10**8)
    with pytest.raises(OutOfMemoryError) as caught:
        resolve(1, free=10**8)
    assert "processes" not in str(caught.value)


def test_a_resumed_run_that_no_longer_fits_names_the_change_and_its_acceptance(prepared, resolve, monkeypatch):
    plan, estimate = resolve(2)
    change = Suggestion(("training.micro_batch_tokens=512", "quantization.mode=4bit"), 1, 1.0)
    estimate = replace(estimate, target=replace(estimate.target, free=1), suggestion=change)
    monkeypatch.setattr(pipeline_estimate, "estimate_run", lambda *_: estimate)
    with pytest.raises(OutOfMemoryError) as caught:
        resolve_plan(plan, prepared[1], SimpleNamespace(read_plan=lambda: plan), 0.0)
    assert str(caught.value).endswith("add --accept-change training.micro_batch_tokens")
    with pytest.raises(OutOfMemoryError) as caught:  # a new run
        resolve_plan(plan, prepared[1], None, 0.0)
    assert "--accept-change" not in str(caught.value)


def test_processes_share_the_memory_of_a_cpu(monkeypatch):
    monkeypatch.setattr("lora_chat.planning.local_device.free_memory_bytes", lambda: 6 * 10**9)
    alone, third = (detect_local_device(CPU, count) for count in (1, 3))
    assert third.free == pytest.approx(alone.free / 3, rel=0.01)
    assert detect_local_device(CPU) == replace(alone, free=detect_local_device(CPU).free)


def test_processes_share_the_limit_of_memory(monkeypatch):
    resource = pytest.importorskip("resource")
    limits = []
    monkeypatch.setattr("lora_chat.system.memory_limit.free_memory_bytes", lambda: 8 * 10**9)
    monkeypatch.setattr("lora_chat.system.memory_limit._data_bytes", lambda: 10**9)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, values: limits.append(values[0]))
    for count in (1, 2):
        with limited_memory(count):
            pass
    assert limits[::2] == [9 * 10**9, 5 * 10**9]


def test_a_benchmark_with_another_number_of_threads_is_another_one(prepared, monkeypatch, tmp_path):
    from lora_chat.models.base_config import find_base_config
    from lora_chat.models.shape import read_shape
    from lora_chat.pipeline.data_lengths import measure_lengths
    from lora_chat.planning.settings_search import PlanningProblem

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine_benchmark, "MIN_BASE_WEIGHTS", 0)
    figures = dict.fromkeys(("rss", "loaded", "load", "step", "start", "read"), 1.0)
    runs = []
    monkeypatch.setattr(machine_benchmark, "_run_benchmark", lambda request: runs.append(1) or [figures, figures])
    plan, run = prepared
    base = find_base_config(plan.base)
    data = measure_lengths(plan, run.train, run.validation, [], None, run.tokenizer, run.general, test=run.test)
    target = TargetDevice("cpu", "x", 2**34, 2**34, 0, at_hand=True)
    problem = PlanningProblem(read_shape(base.config, base.name), data, target)
    for threads in (1, 2, 1):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        assert machine_benchmark.benchmark_machine(plan, problem, base.config, base.folder, allow_slow=True)
    assert len(runs) == 2
