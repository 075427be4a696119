"""A plan for a GPU says where a later merge is checked, as `merge` decides it."""

from dataclasses import replace

import numpy as np
import pytest

from lora_chat.data.lengths import DataLengths, RowLengths
from lora_chat.models.base_config import read_known_configs
from lora_chat.models.shape import read_shape
from lora_chat.planning import notes
from lora_chat.planning.gpu_specs import find_gpu_spec, target_from_gpu_spec
from lora_chat.planning.merge_plan import plan_merge
from lora_chat.planning.notes import list_notes
from lora_chat.planning.phase_memory import estimate_phases
from lora_chat.planning.settings_search import Candidate, PlanningProblem
from lora_chat.planning.weight_memory import MemoryConfig
from lora_chat.planning.workload import compute_workload
from tests.planning.test_settings_search import LLAMA_8B, plan_of

ROWS = RowLengths(*(np.array(numbers) for numbers in ([400, 900], [390, 880], [100, 400])))
DATA = DataLengths(ROWS, ROWS, (60, 80), 64)
CONFIG = MemoryConfig("4bit", 16)


def shape_of(name):
    return read_shape(read_known_configs()[name], name)


def phase(target, name):
    workload = compute_workload(DATA, plan_of().training)
    phases = estimate_phases(shape_of("Qwen/Qwen3-8B"), CONFIG, workload, DATA, target)
    return next(phase for phase in phases if phase.name == name)


@pytest.mark.parametrize(
    ("gpu", "base", "device"),
    [
        ("RTX 4080", "Qwen/Qwen3-8B", "cpu"),
        ("RTX 4060 Ti 16GB", "Qwen/Qwen3-8B", "cpu"),
        ("RTX 3060 12GB", "Qwen/Qwen2.5-7B-Instruct", "cpu"),
        ("RTX 4060", "Qwen/Qwen2.5-3B-Instruct", "cuda"),
        ("RTX 4090", "Qwen/Qwen3-8B", "cuda"),
    ],
)
def test_parity_check_runs_on_the_gpu_only_if_the_merged_model_fits(gpu, base, device):
    target = target_from_gpu_spec(find_gpu_spec(gpu))
    merge = plan_merge(shape_of(base), CONFIG, DATA, target)
    assert merge.device == device
    assert merge.free == target.memory - target.context
    assert merge.needed > 2 * shape_of(base).weights


def test_merge_phase_includes_a_check_in_main_memory():
    small, large = (target_from_gpu_spec(find_gpu_spec(name)) for name in ("RTX 4080", "RTX 4090"))
    assert phase(small, "merge").activations > 10**7
    assert phase(large, "merge").activations == 0
    assert phase(small, "export").activations == 0
    assert all(phase(target, name).in_main_memory for target in (small, large) for name in ("merge", "export"))


def test_cpu_run_needs_no_gpu_for_its_check():
    target = replace(target_from_gpu_spec(find_gpu_spec("RTX 4090")), device="cpu")
    assert plan_merge(shape_of("Qwen/Qwen3-8B"), CONFIG, DATA, target) is None
    assert not phase(target, "merge").in_main_memory


def test_note_names_a_main_memory_that_is_too_small(monkeypatch):
    target = replace(target_from_gpu_spec(find_gpu_spec("RTX 4090")), at_hand=True)
    candidate = Candidate(plan_of(), PlanningProblem(LLAMA_8B, DATA, target))
    monkeypatch.setattr(notes, "total_memory_bytes", lambda: 8 * 2**30)
    assert any(note.startswith("Merging takes ") and "8.00 GiB" in note for note in list_notes(candidate, None))
    monkeypatch.setattr(notes, "total_memory_bytes", lambda: 64 * 2**30)
    assert not any(note.startswith("Merging takes ") for note in list_notes(candidate, None))
