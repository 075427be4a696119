"""The table of architectures agrees with the models that Transformers builds."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lora_chat.models.architectures import ARCHITECTURES, find_architecture, find_fused_architecture
from lora_chat.models.shape import read_shape
from tests.planning.shapes import Widths, make_config

PLANNED = [spec for spec in ARCHITECTURES if spec.layer_family]
WIDTHS = Widths(hidden_size=48, intermediate_size=80, num_heads=4, num_kv_heads=2, head_dim=8)


def test_each_architecture_has_one_row():
    names = [spec.model_type for spec in ARCHITECTURES]
    assert len(names) == len(set(names))


def test_an_unknown_architecture_has_no_facts():
    spec = find_architecture("mamba")
    assert (spec.model_type, spec.layer_family, spec.vllm_lora) == ("mamba", None, None)
    assert find_fused_architecture("MambaBlock") is None


@pytest.mark.parametrize("spec", PLANNED, ids=lambda spec: spec.model_type)
def test_linear_layers_and_weights_equal_the_model(spec):
    config = make_config(spec.model_type, WIDTHS, layers=2, vocabulary=100, tied=False)
    shape = read_shape(config.to_dict(), spec.model_type)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head]
    sizes = sorted(tuple(sorted(m.weight.shape)) for m in linears)
    expected = 2 * [tuple(sorted((linear.in_features, linear.out_features))) for linear in shape.linear_layers()]
    assert sizes == sorted(expected)
    assert any(isinstance(m, Conv1D) for m in linears) == spec.stores_transposed_weights
    assert (head.bias is not None) == spec.has_head_bias
    assert shape.weights == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("spec", [s for s in PLANNED if s.fused_layer], ids=lambda spec: spec.model_type)
def test_a_fused_layer_is_a_class_of_transformers(spec):
    module = getattr(transformers.models, spec.model_type)
    assert hasattr(getattr(module, f"modeling_{spec.model_type}"), spec.fused_layer)
    assert find_fused_architecture(spec.fused_layer) == spec
