"""Training on architectures outside of the table is checked on the model: packing, padding and the LM head."""

import pytest
import torch

from lora_chat.config.adapter_section import AdapterSection
from lora_chat.config.plan import PrecisionPlan
from lora_chat.config.recipe import BaseSection
from lora_chat.errors import UnavailableError
from lora_chat.inference.batch_support import BatchSupport, find_batch_support
from lora_chat.inference.generation import generate_ids
from lora_chat.models.adapter import attach_adapter
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.models.model_errors import explain_model_errors
from lora_chat.training.fast_path.attention.interface import register_packed_attention
from lora_chat.training.fast_path.check_packing import find_packed_collator
from lora_chat.training.fast_path.select import find_fast_path
from lora_chat.training.stock_path import StockPath, find_stock_path
from tests.current_architectures import make_current_base

IDS = torch.randint(6, 250, (40,), generator=torch.Generator().manual_seed(0)).tolist()
PROMPTS = [IDS[:9], IDS[3:20], IDS[11:15]]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Return a function that loads a small base, which is written once."""
    folders = {}

    def load_base(name, dtype="bfloat16"):
        if name not in folders:
            folders[name] = make_current_base(name, tmp_path_factory.mktemp(name))
        precision = PrecisionPlan(device="cpu", mode="none", double_quantization=True, dtype=dtype)
        return load_base_model(find_base(BaseSection(name=str(folders[name]))), precision)

    return load_base


def find_collator(model):
    """Return the collator for packed rows, with the attention that the fast path sets."""
    stock_attention = model.config._attn_implementation
    if stock_attention == "sdpa":
        model.set_attn_implementation(register_packed_attention())
    return find_packed_collator(attach_adapter(model, AdapterSection(rank=2)), IDS, stock_attention)


@pytest.mark.parametrize("name", ["falcon_h1", "qwen3_5", "mamba"])
def test_model_that_mixes_packed_dialogues_trains_padded_ones(load, name):
    assert find_collator(load(name)) is None


def test_weak_mixing_is_found(load):
    # The convolution of this base changes the logits in fp32 by 0.0001 only.
    assert find_collator(load("lfm2", "float32")) is None


@pytest.mark.parametrize("name", ["gemma3", "mistral3", "qwen2_5_vl", "granite", "llama4"])
def test_attention_keeps_packed_dialogues_apart(load, name):
    assert find_collator(load(name)) is not None


def test_fast_path_pads_dialogues_that_a_model_would_mix(load):
    fast_path = find_fast_path(attach_adapter(load("lfm2"), AdapterSection(rank=2)), IDS)
    assert fast_path.packed_collator is None
    assert "would mix dialogues" in fast_path.notes[0]


@pytest.mark.parametrize("name", ["recurrent_gemma", "rwkv"])
def test_model_that_reads_padding_answers_prompts_of_one_length_at_a_time(load, name):
    model = load(name).eval()
    assert find_batch_support(model, 0, IDS) == BatchSupport(caches=True, pads=False)
    together = generate_ids(model, 0, PROMPTS, [2], 6)
    assert together == [generate_ids(model, 0, [prompt], [2], 6)[0] for prompt in PROMPTS]


def test_model_that_masks_padding_answers_prompts_of_several_lengths_together(load):
    assert find_batch_support(load("mamba2").eval(), 0, IDS) == BatchSupport()


def test_broken_cache_is_not_used(load, monkeypatch):
    model = load("granite").eval()
    forward = model.forward

    def fail_with_cache(*args, **kwargs):
        if kwargs.get("use_cache"):
            raise ValueError("no cache for this kind of layer")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", fail_with_cache)
    assert not find_batch_support(model, 0, IDS).caches
    assert len(generate_ids(model, 0, PROMPTS[:1], [], 3)[0]) == 3


def patch_trl_head(model):
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model.get_base_model())
    return model


def test_trl_head_is_used_where_it_gives_the_logits_of_the_model(load):
    model = patch_trl_head(attach_adapter(load("granite"), AdapterSection(rank=2)))
    assert find_stock_path(model, IDS) == StockPath()


def test_own_logits_are_used_where_trl_head_gives_others(load):
    base = load("granite")
    base.lm_head.register_forward_hook(lambda module, inputs, output: 3 * torch.tanh(output / 3))  # an unknown soft cap
    stock_path = find_stock_path(patch_trl_head(attach_adapter(base, AdapterSection(rank=2))), IDS)
    assert stock_path.uses_own_logits
    assert "own logits" in stock_path.notes[0]


def test_own_logits_are_used_where_trl_finds_no_hidden_states(load):
    model = patch_trl_head(attach_adapter(load("llama4"), AdapterSection(rank=2)))
    assert find_stock_path(model, IDS).uses_own_logits


def test_split_rows_have_no_padding():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "labels": torch.tensor([[-100, 6, 7], [8, -100, -100]]),
    }
    rows = StockPath(splits_rows=True).split(batch)
    assert [row["input_ids"].tolist() for row in rows] == [[[5, 6, 7]], [[8]]]
    assert [row["labels"].tolist() for row in rows] == [[[-100, 6, 7]], [[8]]]
    assert StockPath().split(batch) == [batch]


def test_error_of_a_models_code_is_one_message(load):
    config = load("mamba").config
    with (
        pytest.raises(
            UnavailableError,
            match=r"Training with my-base failed in the code of Transformers .* mamba: RuntimeError: no",
        ),
        explain_model_errors(config, "my-base", "Training"),
    ):
        raise RuntimeError("no")
    config.model_type = "llama"
    with pytest.raises(RuntimeError), explain_model_errors(config, "my-base", "Training"):
        raise RuntimeError("an error of lora_chat")
