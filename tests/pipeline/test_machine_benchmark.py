"""Small models that are tried before a plan: kept, tried anew when they must be, and survived when they fail."""

import json
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
from lora_chat.system.worker import run_worker

FIGURES = dict.fromkeys(("rss", "loaded", "load", "step", "start", "read", "said", "prefill"), 1.0)
TAKEN = [FIGURES, {**FIGURES, "step": 2.0}]


@pytest.fixture
def job(random_base, monkeypatch, tmp_path):
    """A plan, its job and its config, of a base that is held to be large enough."""
    import numpy as np

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machine_benchmark, "MIN_BASE_WEIGHTS", 0)
    base = random_base("llama")
    plan = make_plan(
        read_recipe(Path("recipes/smoke.yaml"), [f"base.name={base}"]), Hardware("cpu", "x", 2**34, True, 2)
    )
    found = find_base_config(BaseSection(name=str(base)))
    rows = RowLengths(*(np.array(numbers) for numbers in ([40, 30, 50] * 8, [38, 28, 48] * 8, [10, 12, 9] * 8)))
    data = DataLengths(rows, rows, (12, 20), 8)
    return (
        plan,
        PlanningProblem(
            read_shape(found.config, found.name), data, TargetDevice("cpu", "x", 2**34, 2**34, 0, at_hand=True)
        ),
        found,
    )


def find(job, *, allow_slow=True):
    plan, what, base = job
    return machine_benchmark.benchmark_machine(plan, what, base.config, base.folder, allow_slow=allow_slow)


def test_a_shape_is_tried_once(job, monkeypatch):
    tried = []
    monkeypatch.setattr(machine_benchmark, "_run_benchmark", lambda request: tried.append(request) or TAKEN)
    first = find(job)
    assert find(job) == first
    assert len(tried) == 1
    plan, what, base = job
    other = plan.model_copy(update={"adapter": plan.adapter.model_copy(update={"rank": 5})})
    find((other, what, base))
    assert [request["adapter"]["rank"] for request in tried] == [plan.adapter.rank, 5]


@pytest.mark.parametrize("damage", ["", "{", "[]", json.dumps(TAKEN[:1]), json.dumps([{"rss": 1}, {"rss": 1}])])
def test_what_is_damaged_or_of_another_version_is_tried_anew(job, monkeypatch, tmp_path, damage):
    tried = []
    monkeypatch.setattr(machine_benchmark, "_run_benchmark", lambda request: tried.append(request) or TAKEN)
    find(job)
    (kept,) = (tmp_path / "cache").rglob("probes/*.json")
    kept.write_text(damage)
    find(job)
    assert len(tried) == 2
    monkeypatch.setattr(machine_benchmark, "_BENCHMARK_VERSION", 10**6)
    find(job)
    assert len(tried) == 3


def test_one_that_fails_is_no_reason_to_stop(job, monkeypatch, tmp_path, messages):
    monkeypatch.setattr("lora_chat.system.worker.sys.executable", "false")
    assert find(job) is None
    assert messages[-1].startswith("The benchmark failed")
    assert not list((tmp_path / "cache").rglob("probes/*.json"))


def test_large_bases_are_not_tried_where_an_answer_is_awaited(job, monkeypatch):
    monkeypatch.setattr(machine_benchmark, "_run_benchmark", lambda _: TAKEN)
    monkeypatch.setattr(machine_benchmark, "_MAX_QUICK_BASE_WEIGHTS", 10)
    assert find(job, allow_slow=False) is None
    assert find(job, allow_slow=True)
    assert find(job, allow_slow=False)  # once it is known


def test_imagined_devices_and_gpus_are_not_tried(job, monkeypatch):
    monkeypatch.setattr(machine_benchmark, "_run_benchmark", lambda _: pytest.fail("tried"))
    plan, what, base = job
    for target in (replace(what.target, at_hand=False), replace(what.target, device="cuda")):
        assert find((plan, PlanningProblem(what.shape, what.data, target), base)) is None


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "4bit", "8bit"])
def test_the_worker_says_what_everything_took(job, monkeypatch, mode, warm_workers):
    plan, what, base = job
    plan = plan.model_copy(update={"precision": plan.precision.model_copy(update={"mode": mode, "dtype": "bfloat16"})})
    requests = []
    monkeypatch.setattr(machine_benchmark, "_run_benchmark", lambda request: requests.append(request) or TAKEN)
    find((plan, what, base))
    request = requests[0] | {"layers": [1, 3]}
    run = run_worker if mode == "4bit" else warm_workers.run  # one of them as a user's
    done = run("lora_chat.pipeline.machine_benchmark_worker", stdin=json.dumps(request), timeout=200)
    assert done.exit_code == 0, done.stderr
    for taken in json.loads(done.stdout):
        assert set(taken) == set(FIGURES)
        assert all(value > 0 for value in taken.values())
        assert 10**8 < taken["loaded"] < 3 * 10**9
        assert 10**8 < taken["rss"] < 3 * 10**9
