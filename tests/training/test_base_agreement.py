"""Processes whose bases differ in memory end before the first step."""

import pytest
import torch
import transformers

from lora_chat.config.recipe import AdapterSection
from lora_chat.errors import IntegrityError
from lora_chat.models.adapter import attach_adapter
from lora_chat.processes.group import ProcessGroup
from lora_chat.processes.rank import Rank
from lora_chat.training.base_agreement import check_same_base

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64, "intermediate_size": 48}
IDS = list(range(3, 40))


class Pair(ProcessGroup):
    """The first of two processes; the second gives `other`."""

    rank = Rank(0, 2)
    other: list | None = None

    def exchange(self, values):
        self.sent = list(values)
        return [self.sent, self.other or self.sent]


def predict(change=None):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, initializer_range=0.3))
    model = attach_adapter(model, AdapterSection(rank=2, dropout=0.5), seed=1).train()
    if change:
        with torch.no_grad():
            change(model.get_base_model())
    group = Pair()
    check_same_base(model, IDS, group)
    assert model.training
    return group, model


def lose_a_layer(base):
    base.model.layers[1].self_attn.o_proj.weight.zero_()


def damage_a_weight(base):
    base.model.layers[0].mlp.down_proj.weight[3, 4] = 1e4


def overflow(base):
    base.model.layers[0].mlp.down_proj.weight[3, 4] = float("nan")


@pytest.mark.parametrize("change", [lose_a_layer, damage_a_weight, overflow])
def test_another_base_in_memory_ends_the_run(change):
    group, model = predict()
    group.other = predict(change)[0].sent
    with pytest.raises(IntegrityError, match="predictions of 2 of 2 differ"):
        check_same_base(model, IDS, group)


def test_rounding_is_no_difference():
    group, model = predict()
    group.other = predict(lambda base: [p.copy_(p.bfloat16()) for p in base.parameters()])[0].sent
    assert group.other != group.sent
    check_same_base(model, IDS, group)
