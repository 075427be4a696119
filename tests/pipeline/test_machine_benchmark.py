"""The machine benchmark is cached, repeated when the cache is invalid, and optional when it fails."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lora_chat.config.load import read_recipe
from lora_chat.config.plan import make_plan
from lora_chat.config.recipe import BaseSection
from lora_chat.data.lengths import DataLengths, RowLengths
from lora_chat.models.base_config import find_base_config
from lora_chat.models.shape import read_shape
from lora_chat.pipeline import machine_benchmark
from lora_chat.planning.device import TargetDevice
from lora_chat.planning.settings_search import PlanningProblem
from lora_chat.system.hardware import Hardware

FIGURES = dict.fromkeys(("rss", "loaded", "load", "step", "start", "read", "said", "prefill"), 1.0)
MEASURED = [FIGURES, {**FIGURES, "step": 2.0}]
ALL = pytest.mark.skipif("LORA_CHAT_ALL_BASES" not in os.environ, reason="on demand: LORA_CHAT_ALL_BASES=1")


@pytest.fixture
def job(random_base, monkeypatch, tmp_path):
    """Return a plan, its problem and its base; every base is large enough for a benchmark."""
    import numpy as np

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machine_benchmark, "MIN_BASE_WEIGHTS", 0)
    base = random_base("llama")
    plan = make_plan(
        read_recipe(Path("recipes/smoke.yaml"), [f"base.name={base}"]), Hardware("cpu", "x", 2**34, True, 2)
    )
    base_config = find_base_config(BaseSection(name=str(base)))
    rows = RowLengths(*(np.array(numbers) for numbers in ([40, 30, 50] * 8, [38, 28, 48] * 8, [10, 12, 9] * 8)))
    data = DataLengths(rows, rows, (12, 20), 8)
    return (
        plan,
        PlanningProblem(
            read_shape(base_config.config, base_config.name),
            data,
            TargetDevice("cpu", "x", 2**34, 2**34, 0, at_hand=True),
        ),
        base_config,
    )


def benchmark(job, *, allow_slow=True):
    plan, problem, base = job
    return machine_benchmark.benchmark_machine(plan, problem, base.config, base.folder, allow_slow=allow_slow)


def test_benchmarks_a_shape_once(job, monkeypatch):
    requests = []
    monkeypatch.setattr(machine_benchmark, "_run_benchmark", lambda request: requests.append(request) or MEASURED)
    first = benchmark(job)
    assert benchmark(job) == first
    assert len(requests) == 1
    plan, problem, base = job
    other = plan.model_copy(update={"adapter": plan.adapter.model_copy(update={"rank": 5})})
    benchmark((other, problem, base))
    assert [request["adapter"]["rank"] for request in requests] == [plan.adapter.rank, 5]


@pytest.mark.parametrize("damage", ["", "{", "[]", json.dumps(MEASURED[:1]), json.dumps([{"rss": 1}, {"rss": 1}])])
def test_repeats_a_benchmark_if_the_cache_is_damaged_or_of_another_version(job, monkeypatch, tmp_path, damage):
    requests = []
    monkeypatch.setattr(machine_benchmark, "_run_benchmark", lambda request: requests.append(request) or MEASURED)
    benchmark(job)
    (cached,) = (tmp_path / "cache").rglob("probes/*.json")
    cached.write_text(damage)
    benchmark(job)
    assert len(requests) == 2
    monkeypatch.setattr(machine_benchmark, "_BENCHMARK_VERSION", 10**6)
    benchmark(job)
    assert len(requests) == 3


def test_failed_benchmark_returns_none(job, monkeypatch, tmp_path, messages):
    monkeypatch.setattr("lora_chat.system.worker.sys.executable", "false")
    assert benchmark(job) is None
    assert messages[-1].startswith("The benchmark failed")
    assert not list((tmp_path / "cache").rglob("probes/*.json"))


def test_plan_does_not_benchmark_large_bases(job, monkeypatch):
    monkeypatch.setattr(machine_benchmark, "_run_benchmark", lambda _: MEASURED)
    monkeypatch.setattr(machine_benchmark, "_MAX_QUICK_BASE_WEIGHTS", 10)
    assert benchmark(job, allow_slow=False) is None
    assert benchmark(job, allow_slow=True)
    assert benchmark(job, allow_slow=False)  # cached by now


def test_does_not_benchmark_other_machines_and_gpus(job, monkeypatch):
    monkeypatch.setattr(machine_benchmark, "_run_benchmark", lambda _: pytest.fail("benchmarked"))
    plan, problem, base = job
    for target in (replace(problem.target, at_hand=False), replace(problem.target, device="cuda")):
        assert benchmark((plan, PlanningProblem(problem.shape, problem.data, target), base)) is None


@pytest.mark.slow
@pytest.mark.parametrize("mode", [pytest.param(mode, marks=ALL) for mode in ("4bit", "none", "8bit")])
def test_worker_returns_all_measurements(job, monkeypatch, mode, warm_workers):
    # A worker that starts as for a user is in tests/security/test_working_directory.py.
    plan, problem, base = job
    plan = plan.model_copy(update={"precision": plan.precision.model_copy(update={"mode": mode, "dtype": "bfloat16"})})
    requests = []
    monkeypatch.setattr(machine_benchmark, "_run_benchmark", lambda request: requests.append(request) or MEASURED)
    benchmark((plan, problem, base))
    request = requests[0] | {"layers": [1, 3]}
    done = warm_workers.run("lora_chat.pipeline.machine_benchmark_worker", stdin=json.dumps(request), timeout=200)
    assert done.exit_code == 0, done.stderr
    for measured in json.loads(done.stdout):
        assert set(measured) == set(FIGURES)
        assert all(value > 0 for value in measured.values())
        assert 10**8 < measured["loaded"] < 3 * 10**9
        assert 10**8 < measured["rss"] < 3 * 10**9
