"""Tests that a packed batch, with or without a shared prefix, equals its separate dialogues."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_chat.config.plan import plan_precision
from lora_chat.config.recipe import BaseSection, QuantizationSection
from lora_chat.models.base_model import find_base, load_base_model
from lora_chat.system.hardware import Hardware
from lora_chat.training.fast_path.attention.blocks import build_blocks
from lora_chat.training.fast_path.attention.interface import SharedPrefixUnsupportedError, register_packed_attention
from lora_chat.training.fast_path.check_packing import find_packed_collator
from lora_chat.training.fast_path.packed_batch import PackedBatchCollator

FP32 = Hardware("cpu", "test", 0, False, 2)
IDS = list(range(10, 58))


def row(ids, unsupervised):
    return {"input_ids": ids, "labels": [-100] * unsupervised + ids[unsupervised:]}


def load(folder, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    if not changes:
        return load_base_model(
            find_base(BaseSection(name=str(folder))), plan_precision(QuantizationSection(mode="none"), FP32)
        )
    config = AutoConfig.from_pretrained(folder, **changes)
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)


def test_batch_contains_shared_prefix_once():
    batch = PackedBatchCollator(share_prefix=True)(
        [row([1, 2, 3, 4, 5, 6, 7], 6), row([1, 2, 3, 4, 8, 9], 5), row([1, 2, 3, 4, 5, 7], 5)]
    )
    assert batch["shared_prefix"] == 4
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 7]]
    assert batch["labels"].tolist() == [[-100] * 6 + [7, -100, 9, -100, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 4, 5, 4, 5]]
    assert batch["packed_cu_seqlens"] == (0, 7, 9, 11)
    assert batch["cu_seq_lens_q"].tolist() == [0, 7, 9, 11]
    assert batch["supervised"].tolist() == [5, 7, 9]


def test_removes_tokens_after_the_last_trained_token():
    tail = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, -100, -100]}
    batch = PackedBatchCollator(share_prefix=True)([tail, {"input_ids": [6, 7], "labels": [-100, -100]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 6, 7]]
    assert batch["labels"].tolist() == [[-100, -100, 3, -100, -100]]


@pytest.mark.parametrize(
    ("rows", "prefix"),
    [
        ([row(IDS, 20)], 0),  # a single row shares nothing
        ([row(IDS, 20), row(IDS, 20)], 19),  # the token after the shared ones is not trained either
        ([row(IDS, 20), row(IDS, 8)], 7),
        ([row(IDS, 20), row(IDS[:3] + IDS[4:], 20)], 0),  # too short
        ([row(IDS, 20), row(IDS[:6] + IDS[7:], 20)], 6),
    ],
)
def test_shares_only_an_untrained_prefix(rows, prefix):
    assert PackedBatchCollator(share_prefix=True)(rows).get("shared_prefix", 0) == prefix
    assert "shared_prefix" not in PackedBatchCollator(share_prefix=False)(rows)


@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12), prefix=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_blocks_contain_every_token_once_after_its_prefix(lengths, prefix):
    lengths[0] += prefix
    cu_seqlens = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    all_tokens = []
    for block in build_blocks(tuple(cu_seqlens), prefix):
        padded = block.padded_tokens.view(-1, block.length)
        for slot, token in zip(block.own_slots.tolist(), block.own_tokens.tolist(), strict=True):
            line, column = divmod(slot, block.length)
            sequence = next(i for i in range(len(lengths)) if cu_seqlens[i] <= token < cu_seqlens[i + 1])
            before = list(range(prefix)) if sequence else []
            assert padded[line, : column + 1].tolist() == before + list(range(cu_seqlens[sequence], token + 1))
        all_tokens += block.own_tokens.tolist()
    assert sorted(all_tokens) == list(range(cu_seqlens[-1]))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma", "phi", "gpt2"])
def test_shared_prefix_changes_neither_logits_nor_gradients(architecture, random_base):
    changes = {"sliding_window": 7} if architecture == "mistral" else {}
    model = load(random_base(architecture), **changes).eval()
    rows = [row(IDS[:20] + list(range(100 + 9 * i, 100 + 9 * i + 4 + 5 * i)), 22) for i in range(4)]
    embedding = model.get_input_embeddings()
    embedding.weight.requires_grad_()
    expected = torch.zeros(())
    for dialogue in rows:
        ids = torch.tensor([dialogue["input_ids"]])
        expected = expected + model(input_ids=ids, labels=torch.tensor([dialogue["labels"]])).loss * (ids.shape[1] - 22)
    expected.backward()
    expected_gradient, embedding.weight.grad = embedding.weight.grad, None

    model.set_attn_implementation(register_packed_attention())
    batch = PackedBatchCollator(share_prefix=True)(rows)
    assert batch["shared_prefix"] == 20
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(embedding.weight.grad, expected_gradient, atol=1e-5)


def find_collator(model):
    stock = model.config._attn_implementation
    if stock == "sdpa":
        model.set_attn_implementation(register_packed_attention())
    return find_packed_collator(model, IDS, stock)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi"])
def test_known_architectures_share_the_prefix(architecture, random_base):
    assert find_collator(load(random_base(architecture, 30.0))) == PackedBatchCollator(share_prefix=True)


def test_attention_dropout_prevents_sharing(random_base):
    assert find_collator(load(random_base("gpt2", 30.0), attn_pdrop=0.1)) == PackedBatchCollator(share_prefix=False)
    assert find_collator(load(random_base("gpt2", 30.0), attn_pdrop=0.0)) == PackedBatchCollator(share_prefix=True)


def test_keeps_sliding_window(random_base):
    narrow, wide = (load(random_base("mistral", 30.0), sliding_window=w) for w in (5, 500))
    ids = torch.tensor([IDS])
    assert not torch.allclose(narrow(ids).logits, wide(ids).logits, atol=0.1)
    assert find_collator(narrow) == find_collator(wide) == PackedBatchCollator(share_prefix=True)


def test_soft_caps_prevent_sharing(random_base):
    assert find_collator(load(random_base("gemma2", 30.0))) == PackedBatchCollator(share_prefix=False)


def test_layers_that_mix_tokens_prevent_packing(random_base):
    model = load(random_base("llama", 30.0))
    layer = model.model.layers[0].mlp
    stock = layer.forward
    layer.forward = lambda x: stock(x) + 0.5 * torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
    assert find_collator(model) is None


def test_rejects_shared_prefix_in_unsupported_attention(random_base):
    model = load(random_base("gpt2"), attn_pdrop=0.1).train()
    model.set_attn_implementation(register_packed_attention())
    batch = PackedBatchCollator(share_prefix=True)([row(IDS, 20), row(IDS, 20)])
    del batch["labels"]
    with pytest.raises(SharedPrefixUnsupportedError):
        model(**batch, use_cache=False)
