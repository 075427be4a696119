"""A loss made in chunks is that of the model's own logits, and chunks are used only where they are."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_chat.evaluation import chunked_loss

TOKENS = 60


def load(random_base, architecture):
    return AutoModelForCausalLM.from_pretrained(random_base(architecture, 8.0), dtype=torch.float32).eval()


def losses(model, monkeypatch):
    """Whole and in chunks, and the most positions that the head ever saw."""
    ids = torch.arange(TOKENS)[None] % 250 + 3
    keep, next_ids = torch.arange(5, TOKENS - 1), ids[0, 6:]
    vocabulary = model.get_output_embeddings().out_features
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-2]))
    with torch.inference_mode():
        whole = model(input_ids=ids, logits_to_keep=keep).logits[0].float()
        expected = torch.nn.functional.cross_entropy(whole, next_ids, reduction="sum")
        seen.clear()
        monkeypatch.setattr(chunked_loss, "MAX_EVALUATION_LOGITS", 7 * vocabulary)
        found, right = chunked_loss.sum_supervised(model, ids, keep, next_ids)
    assert int(right) == int((whole.argmax(dim=-1) == next_ids).sum())
    return float(expected), float(found), max(seen)


@pytest.mark.parametrize("architecture", ["llama", "phi", "gpt2", "qwen3"])
def test_chunked_loss_equals_the_loss_of_all_logits(random_base, monkeypatch, architecture):
    expected, found, most = losses(load(random_base, architecture), monkeypatch)
    assert found == pytest.approx(expected, rel=1e-5)
    assert most <= 7


def test_softcapped_logits_are_not_chunked(random_base, monkeypatch):
    model = load(random_base, "gemma2")
    model.config.final_logit_softcapping = 2.0
    expected, found, most = losses(model, monkeypatch)
    assert found == pytest.approx(expected, rel=1e-6)
    assert most > 7


def test_few_positions_are_one_forward_pass(random_base):
    model = load(random_base, "llama")
    ids = torch.arange(TOKENS)[None] % 250 + 3
    calls = []
    model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        chunked_loss.sum_supervised(model, ids, torch.arange(4), ids[0, 1:5])
    assert len(calls) == 1
    assert not model.get_output_embeddings()._forward_pre_hooks
