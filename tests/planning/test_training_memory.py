import os
import statistics
from dataclasses import replace

import pytest

from lora_chat.errors import RecipeError
from lora_chat.models.shape import read_shape
from lora_chat.planning import layer_memory
from lora_chat.planning.layer_memory import MicroBatch, evaluate_terms
from lora_chat.planning.training_memory import estimate_training_memory
from lora_chat.planning.weight_memory import MemoryConfig, weight_bytes
from tests.planning import derivation
from tests.planning.grid import BASES, measure, points, predict
from tests.planning.shapes import ARCHITECTURES, LLAMA_8B_CONFIG, Widths, make_config

pytestmark = pytest.mark.slow

GRID = int(os.environ.get("LORA_CHAT_MEMORY_GRID", "6"))
"""Number of compared settings, over all bases in turn; hundreds take minutes."""


@pytest.mark.skipif("LORA_CHAT_ALL_BASES" not in os.environ, reason="on demand: LORA_CHAT_ALL_BASES=1")
@pytest.mark.slow
@pytest.mark.timeout(30 + 10 * GRID)
def test_closed_form_agrees_with_a_dry_run_of_the_real_model():
    errors = {point: abs(predict(point).total / measure(point) - 1) for point in points(GRID, seed=5)}
    worst_point = max(errors, key=lambda point: errors[point])
    assert errors[worst_point] < 0.05, worst_point
    assert statistics.median(errors.values()) < 0.01


@pytest.mark.parametrize("number", range(2))
def test_closed_form_agrees_for_a_small_base(number):
    small = [point for point in points(150, seed=9) if point.base == BASES[2]][number]
    assert abs(predict(small).total / measure(small) - 1) < 0.01


def every(step):
    return list(derivation.names())[::step]


@pytest.mark.parametrize("entry", every(1 if GRID > 100 else 9), ids=str)
def test_layer_table_agrees_with_allocated_bytes(entry):
    architecture, variant, mode, checkpointed, key_heads = entry
    name = derivation.entry_name(architecture, variant, mode, checkpointed, key_heads)
    derived = derivation.derive(architecture, variant, mode, checkpointed=checkpointed, num_kv_heads=key_heads)
    assert layer_memory._load_layer_terms()[name] == derived, "write it again: python -m tests.planning.derivation"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shape_counts_the_weights_of_the_model(architecture):
    import torch
    from transformers import AutoModelForCausalLM

    for tied in (True, False):
        config = make_config(architecture, Widths(96, 160, 6, 2, 16), 3, 211, tied=tied)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert read_shape(config.to_dict(), "this").weights == sum(p.numel() for p in model.parameters())


def test_evaluates_sums_of_terms():
    assert evaluate_terms("12Th 2hf", {"T": 4, "h": 3, "f": 5}) == 12 * 4 * 3 + 2 * 3 * 5
    assert evaluate_terms("0.5Th -1T", {"T": 4, "h": 3}) == 2
    assert evaluate_terms("", {"T": 4}) == 0


def shape_of(**changes):
    return read_shape(LLAMA_8B_CONFIG | changes, "some-base")


def test_rejects_config_without_a_width_by_name():
    with pytest.raises(RecipeError, match=r"base\.name: the config of some-base has no whole number as hidden_size"):
        shape_of(hidden_size=None)
    with pytest.raises(RecipeError, match="has no whole number as vocab_size"):
        shape_of(vocab_size="many")
    with pytest.raises(RecipeError, match="some-base is of the architecture mamba, whose memory cannot be planned yet"):
        shape_of(model_type="mamba")


def test_quantized_8b_base_takes_the_bytes_of_its_format():
    loaded_gb = {mode: weight_bytes(shape_of(), MemoryConfig(mode, 16)) / 1e9 for mode in ("4bit", "8bit", "none")}
    assert loaded_gb["none"] == pytest.approx(16.06, abs=0.01)  # 8,030,261,248 weights of two bytes
    assert loaded_gb["4bit"] == pytest.approx(5.7, abs=0.05)  # 6.98e9 quantised, the rest in 16 bits
    assert loaded_gb["4bit"] < loaded_gb["8bit"] < loaded_gb["none"]


def test_memory_grows_with_tokens_rank_and_moments():
    batch, memory_config = MicroBatch(2048, 2048, 1024), MemoryConfig("4bit", 16, fast_path=True)
    less = estimate_training_memory(shape_of(), memory_config, batch).total
    assert estimate_training_memory(shape_of(), memory_config, replace(batch, tokens=4096)).total > less
    assert estimate_training_memory(shape_of(), replace(memory_config, rank=64), batch).total > less
    assert estimate_training_memory(shape_of(), replace(memory_config, checkpointed=16), batch).total < less
    assert estimate_training_memory(shape_of(), replace(memory_config, moment_bytes=2), batch).total < less
    few = replace(memory_config, target_modules=("q_proj", "v_proj"))
    assert (
        estimate_training_memory(shape_of(), few, batch).adapter
        < estimate_training_memory(shape_of(), memory_config, batch).adapter
    )


def test_total_is_the_sum_of_the_parts():
    memory = estimate_training_memory(shape_of(), MemoryConfig("4bit", 16), MicroBatch(2048, 1024, 900), padded=True)
    parts = (memory.weights, memory.adapter, memory.gradients, memory.optimizer)
    assert memory.total == sum(parts) + memory.activations + memory.head + memory.temporaries
    assert all(part >= 0 for part in parts)
