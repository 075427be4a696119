"""The check of a parcel's weights on experts needs no base."""

import pytest
import torch

from lora_chat.errors import IntegrityError
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.sharing.tensor_checks import check_tensors

SETTINGS = LoraSettings(
    rank=2,
    alpha=4,
    dropout=0.0,
    target_modules=("q_proj",),
    experts=("mlp.experts.down_proj", "mlp.experts.gate_up_proj"),
)
LAYER = "base_model.model.model.layers.0"
EXPERTS = f"{LAYER}.mlp.experts"
INNER = f"{EXPERTS}.base_layer"


def make_tensors(num_experts=3):
    pairs = {f"{LAYER}.self_attn.q_proj": (2, 8, 8), INNER: (2 * num_experts, 8, 12), EXPERTS: (2 * num_experts, 6, 8)}
    tensors = {}
    for name, (rank, inputs, outputs) in pairs.items():
        tensors[f"{name}.lora_A.weight"] = torch.zeros(rank, inputs)
        tensors[f"{name}.lora_B.weight"] = torch.zeros(outputs, rank)
    return tensors


def test_counts_the_parameters_of_all_experts():
    assert check_tensors(make_tensors(), SETTINGS) == 2 * 16 + 6 * 20 + 6 * 14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{EXPERTS}.lora_A.weight": torch.zeros(5, 6)}, "rank 2 for each expert"),
        ({f"{EXPERTS}.lora_A.weight": torch.zeros(8, 6)}, "rank 2 for each expert"),
        ({f"{EXPERTS}.lora_A.weight": torch.zeros(0, 6), f"{EXPERTS}.lora_B.weight": torch.zeros(8, 0)}, "each expert"),
        ({f"{EXPERTS}.lora_B.weight": None}, "exactly lora_A and lora_B"),
        ({f"{EXPERTS}.lora_B.weight": torch.zeros(8, 6, dtype=torch.bfloat16)}, "its two weights are"),
        ({f"{INNER}.lora_A.weight": None, f"{INNER}.lora_B.weight": None}, "1 LoRA pairs for its expert weights"),
        ({f"{INNER}.base_layer.lora_A.weight": torch.zeros(6, 8)}, "exactly lora_A and lora_B"),
        ({f"{LAYER}.mlp.gate.lora_A.weight": torch.zeros(2, 8)}, "not a target module"),
        ({f"{LAYER}.mlp.experts.0.lora_A.weight": torch.zeros(2, 8)}, "not a target module"),
    ],
)
def test_refuses_tensors_that_are_no_lora_of_experts(changes, message):
    tensors = {name: value for name, value in (make_tensors() | changes).items() if value is not None}
    with pytest.raises(IntegrityError, match=message):
        check_tensors(tensors, SETTINGS)


def test_refuses_experts_without_weights():
    attention = {name: tensor for name, tensor in make_tensors().items() if "experts" not in name}
    with pytest.raises(IntegrityError, match="for which there are no weights"):
        check_tensors(attention, SETTINGS)
