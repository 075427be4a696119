"""Steps and micro-batches as training makes them."""

from dataclasses import replace

import numpy as np
import pytest
from test_settings_search import LLAMA_8B, lengths, plan_of

from lora_chat.data.lengths import DataLengths, RowLengths
from lora_chat.planning.calibration import (
    MachineBenchmark,
    calibrate,
    choose_benchmark_rows,
    durations_from_benchmark,
    estimate_merge_time,
)
from lora_chat.planning.device import TargetDevice
from lora_chat.planning.layer_memory import MicroBatch
from lora_chat.planning.phase_memory import estimate_load_phase
from lora_chat.planning.training_memory import estimate_training_memory
from lora_chat.planning.weight_memory import MemoryConfig
from lora_chat.planning.workload import compute_workload, largest_micro_batch


def data_of(*tokens, shared=0):
    rows = lengths(*tokens)
    return DataLengths(rows, rows, (), 8, shared_prefix=shared)


STEPS = [(100, 16, 3.0, 21), (100, 10, 0.5, 5), (3, 16, 2.0, 2), (17, 16, 1.5, 3)]


@pytest.mark.parametrize(("rows", "batch", "epochs", "steps"), STEPS)
def test_counts_the_steps_of_the_trainer(rows, batch, epochs, steps):
    workload = compute_workload(data_of(*[50] * rows), plan_of(effective_batch_size=batch, epochs=epochs).training)
    assert workload.steps == steps


def test_counts_supervised_tokens_in_every_epoch():
    workload = compute_workload(data_of(*[30] * 64), plan_of(effective_batch_size=16, epochs=2.0).training)
    assert workload.supervised_tokens == 2 * 64 * 10
    assert workload.supervised_share == pytest.approx(1 / 3)


def test_padded_rows_are_as_long_as_the_longest():
    plan = plan_of(effective_batch_size=4, micro_batch_size=4).training
    even, uneven = (compute_workload(data_of(*rows), plan) for rows in ([50] * 8, [10, 90] * 4))
    assert even.step_positions == even.step_tokens == 200
    assert uneven.step_tokens == 200
    assert uneven.step_positions > 300
    assert uneven.mask_needed
    assert not even.mask_needed


def test_largest_micro_batch_stays_within_its_token_budget():
    data = data_of(900, 500, 400, 100, 50)
    plan = plan_of(fast_path=True, micro_batch_tokens=1024).training
    assert largest_micro_batch(data, plan).tokens == 900 + 100
    assert largest_micro_batch(data, plan.model_copy(update={"micro_batch_tokens": 300})).tokens == 900
    shared = replace(data, shared_prefix=40)
    assert largest_micro_batch(shared, plan).tokens == 900 + 60 + 10
    padded = plan_of(micro_batch_size=2).training
    assert largest_micro_batch(data, padded) == MicroBatch(1800, 900, 300 + 166)


def test_most_supervised_tokens_may_be_outside_the_longest_rows():
    rows = RowLengths(np.array([60, 20, 20, 20]), np.array([60, 20, 20, 20]), np.array([5, 18, 17, 16]))
    plan = plan_of(fast_path=True, effective_batch_size=2, micro_batch_tokens=70).training
    assert largest_micro_batch(DataLengths(rows, rows, (), 8), plan) == MicroBatch(60, 60, 18 + 17)


def test_calibration_recovers_the_context_of_a_benchmark():
    """The context is computed from measured bytes that were made with a known context."""
    memory_config, plan = MemoryConfig("4bit", 16, fast_path=True), plan_of(fast_path=True).training
    data = data_of(*[256] * 16)
    workload = compute_workload(data, plan)

    def rss(layers):
        memory = estimate_training_memory(replace(LLAMA_8B, num_layers=layers), memory_config, workload.largest)
        return memory.total + 0.3 * memory.fragmented_bytes + 7e8

    loaded = estimate_load_phase(replace(LLAMA_8B, num_layers=6), memory_config, 0).total + 4e8
    measured = {"rss": rss(2), "step": 1.0}, {"rss": rss(6), "step": 2.0, "loaded": loaded}
    benchmark = MachineBenchmark((2, 6), measured, workload, 256)
    result = calibrate(TargetDevice("cpu", "x", 2**36, 2**36, 0, at_hand=True), benchmark, LLAMA_8B, memory_config)
    assert result.context == pytest.approx(7e8 + 1.5e8, rel=1e-3)
    assert result.loading == pytest.approx(4e8 + 1.5e8, rel=1e-3)
    assert result.fragmentation == 0.3
    plain = calibrate(result, benchmark, LLAMA_8B, replace(memory_config, mode="none"))
    assert plain.loading is None  # a 16-bit base is mapped and read in training
    assert benchmark.extrapolate("step", 32) == pytest.approx(2.0 + 26 * 0.25)


def test_benchmark_rows_are_distributed_like_the_data():
    rows, chosen = choose_benchmark_rows(list(range(10, 110)), 8, 10**6, 3)
    assert rows == 8
    assert len(set(chosen)) == len(chosen) == 3 * 8  # all steps differ
    assert np.mean(chosen) == pytest.approx(59.5, abs=1)
    assert max(chosen) > 95 > 25 > min(chosen)
    rows, chosen = choose_benchmark_rows([1000] * 50, 16, 4096, 3)
    assert (rows, len(chosen)) == (5, 15)


def test_training_time_scales_with_the_run_and_includes_its_largest_micro_batch():
    memory_config, plan = MemoryConfig("4bit", 16, fast_path=True), plan_of(fast_path=True, max_steps=10).training
    small, whole = data_of(*[100] * 16), data_of(*[300] * 64)
    workload = compute_workload(whole, plan)
    measured = {"step": 1.0, "start": 2.0, "load": 0.0, "read": 0.0}
    benchmark = MachineBenchmark((2, 6), (measured, measured), compute_workload(small, plan), 100)
    result = durations_from_benchmark(benchmark, LLAMA_8B, memory_config, workload, whole, 0.0)
    position = 1.0 / benchmark.workload.step_positions
    larger = workload.largest.tokens - benchmark.workload.largest.tokens
    assert larger > 0
    expected = 2.0 + position * (larger + 10 * workload.step_positions)
    assert result["train"].likely == pytest.approx(expected)


def test_merge_time_includes_a_parity_check_of_at_most_sixteen_dialogues():
    memory_config, plan = MemoryConfig("4bit", 16), plan_of().training
    measured = {"load": 0.0, "read": 5.0, "prefill": 0.0, "said": 0.0}
    benchmark = MachineBenchmark((2, 6), (measured, measured), compute_workload(data_of(*[100] * 16), plan), 50)
    nothing, few, many, more = (
        estimate_merge_time(benchmark, LLAMA_8B, memory_config, data_of(*[rows[0]] * rows[1])).likely
        for rows in ((0, 1), (50, 8), (50, 16), (50, 700))
    )
    assert few - nothing == pytest.approx(3 * 8 * 5.0)
    assert many - nothing == more - nothing == pytest.approx(3 * 16 * 5.0)
    result = estimate_merge_time(benchmark, LLAMA_8B, memory_config, data_of(50))
    assert result.low < result.likely < result.high
