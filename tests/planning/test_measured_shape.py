"""Memory of architectures without formulas, measured on the model without weights."""

import os

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.models.shape import read_shape
from lora_chat.planning.dry_run.curves import Curve
from lora_chat.planning.dry_run.measure import measure_shape
from lora_chat.planning.layer_memory import MicroBatch
from lora_chat.planning.measured_shape import find_memory_source
from lora_chat.planning.training_memory import estimate_training_memory
from lora_chat.planning.weight_memory import MemoryConfig, weight_bytes
from tests.planning.grid import BASES
from tests.planning.shapes import make_config

ALL = os.environ.get("LORA_CHAT_ALL_BASES") == "1"
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 300,
}
UNKNOWN = {
    "qwen3_moe": {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16},
}


def make_model(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def config_of(model_type):
    sizes = {name: size for name, size in SIZES.items() if model_type != "mamba2" or "head" not in name}
    return AutoConfig.for_model(model_type, **sizes, **UNKNOWN[model_type], pad_token_id=0)


@pytest.mark.parametrize("number", range(0, len(BASES)) if ALL else [5])
def test_a_measured_shape_agrees_with_the_formulas_where_there_are_some(number):
    base = BASES[number]
    config = make_config(base.architecture, base.widths, base.layers, base.vocabulary, tied=base.tied)
    measured, known = measure_shape(make_model(config), AdapterSection(rank=16)), read_shape(config.to_dict(), "x")
    assert measured.weights == known.weights
    for mode in ("none", "4bit", "8bit") if ALL else ("4bit",):
        for checkpointed in (0, base.layers):
            memory_config = MemoryConfig(mode=mode, rank=16, checkpointed=checkpointed)
            assert weight_bytes(measured, memory_config) == pytest.approx(weight_bytes(known, memory_config), rel=1e-3)
            for batch in (MicroBatch(1024, 1024, 500), MicroBatch(8192, 2048, 4000)):
                sizes = [estimate_training_memory(shape, memory_config, batch).total for shape in (measured, known)]
                assert sizes[0] == pytest.approx(sizes[1], rel=0.06), (mode, checkpointed, batch)


@pytest.mark.parametrize("model_type", UNKNOWN if ALL else ["qwen3_moe", "lfm2"])
def test_every_weight_is_counted_and_layers_run_without_weights(model_type):
    config = config_of(model_type)
    weights = sum(weight.numel() for weight in make_model(config).parameters())
    shape = measure_shape(make_model(config), AdapterSection(rank=4))
    assert shape.weights == weights
    small, large = (
        estimate_training_memory(shape, MemoryConfig(mode="none", rank=4), MicroBatch(tokens, tokens, 10))
        for tokens in (512, 4096)
    )
    assert find_memory_source(shape) == "dry run"
    assert 7 < large.activations / small.activations < 9
    checkpointed = MemoryConfig(mode="none", rank=4, checkpointed=4)
    assert estimate_training_memory(shape, checkpointed, MicroBatch(4096, 4096, 10)).activations < large.activations / 2


def test_experts_stay_in_16_bits():
    shape = measure_shape(make_model(config_of("qwen3_moe")), AdapterSection(rank=4))
    experts = 4 * 8 * 3 * 64 * 32
    assert shape.other_weights > experts
    plain, packed = (weight_bytes(shape, MemoryConfig(mode=mode, rank=4)) for mode in ("none", "4bit"))
    assert plain - packed == pytest.approx(shape.num_linear_weights * (2 - 0.5 - 1 / 64), rel=0.01)


def test_a_model_that_cannot_run_without_weights_gets_an_upper_bound(monkeypatch):
    def fail(*arguments, **options):
        raise NotImplementedError("no implementation for tensors without values")

    def sizes(shape):
        settings = [MemoryConfig(mode="none", rank=4, checkpointed=number) for number in (0, 4)]
        return [estimate_training_memory(shape, setting, MicroBatch(2048, 1024, 100)).total for setting in settings]

    config = config_of("qwen3_moe")
    measured = sizes(measure_shape(make_model(config), AdapterSection(rank=4)))
    monkeypatch.setattr("lora_chat.planning.dry_run.measure.record_passes", fail)
    shape = measure_shape(make_model(config), AdapterSection(rank=4))
    assert all(upper > size for upper, size in zip(sizes(shape), measured, strict=True))
    assert find_memory_source(shape) == "upper bound"


@pytest.mark.parametrize(
    ("constant", "per_token", "per_pair"), [(100, 20, 0), (5000, 3, 0.25), (0, 0, 0), (10**6, 1, 0)]
)
def test_a_curve_continues_lines_and_parabolas(constant, per_token, per_pair):
    points = (512, 1024, 2048)
    curve = Curve.through(points, [round(constant + per_token * t + per_pair * t * t) for t in points])
    expected = constant + per_token * 8192 + per_pair * 8192 * 1024
    assert curve.value(MicroBatch(8192, 1024, 1)) == pytest.approx(expected, rel=0.01, abs=1)


def test_a_curve_that_flattens_is_continued_by_a_line():
    curve = Curve.through((512, 1024, 2048), [512, 900, 1500])
    assert curve.value(MicroBatch(4096, 4096, 1)) == pytest.approx(1500 + 2048 * 600 / 1024, rel=0.01)
