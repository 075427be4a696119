"""Tests that variable-length attention (GPU) equals attention in padded blocks (CPU).

PyTorch has the kernel only for CUDA, so a slow function with the same signature replaces it (conftest.py).
"""

from dataclasses import replace

import pytest
import torch

from lora_chat.training.fast_path.attention.cpu import HeadConfig, blocked_attention_backward, blocked_attention_forward
from lora_chat.training.fast_path.attention.gather_index import build_blocked_layout
from lora_chat.training.fast_path.attention.gpu import (
    build_varlen_layout,
    supports_varlen,
    varlen_attention_backward,
    varlen_attention_forward,
)

CPU = torch.device("cpu")
HEADS = HeadConfig(num_heads=6, num_kv_heads=2, head_dim=4, scale=0.3, window=None)


def install_kernel(monkeypatch, slow_varlen, *, causal_argument=False, grouped="works"):
    """Replace the kernel by one with the arguments of PyTorch 2.10 or 2.11. Return the key heads of its calls."""
    key_heads = []

    def attend(query, key, *args, **options):
        key_heads.append(key.shape[1])
        if key.shape[1] != query.shape[1]:
            if grouped == "raises":
                raise RuntimeError("number of heads in key and query must match")
            options["enable_gqa"] = True
        result = slow_varlen(query, key, *args, **options)
        return result * torch.nan if grouped == "is wrong" and options.get("enable_gqa") else result

    def of_2_10(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None, scale=None):
        window = (-1, 0) if is_causal else (-1, -1)
        return attend(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window)

    def of_2_11(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
        return attend(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", of_2_10 if causal_argument else of_2_11)
    return key_heads


@pytest.mark.parametrize("window", [None, 9, 1])
@pytest.mark.parametrize(
    ("cu_seqlens", "prefix"), [((0, 12), 0), ((0, 5, 6, 30), 0), ((0, 20, 31, 32, 60), 7), ((0, 8, 9), 8)]
)
def test_varlen_attention_equals_blocked_attention(varlen, cu_seqlens, prefix, window):
    heads = HeadConfig(num_heads=6, num_kv_heads=2, head_dim=4, scale=0.3, window=window)
    generator = torch.Generator().manual_seed(len(cu_seqlens))
    states = torch.randn(cu_seqlens[-1], 10, 4, generator=generator)
    grad_out = torch.randn(cu_seqlens[-1], 6, 4, generator=generator)
    blocked_layout = build_blocked_layout(cu_seqlens, prefix, 6, 2)
    varlen_layout = build_varlen_layout(cu_seqlens, prefix, CPU)
    expected, blocked_saved = blocked_attention_forward(states, heads, blocked_layout)
    attn_out, varlen_saved = varlen_attention_forward(states, heads, varlen_layout)
    assert torch.allclose(attn_out, expected, atol=1e-6)
    gradient = varlen_attention_backward(grad_out, varlen_saved)
    assert torch.allclose(
        gradient, blocked_attention_backward(grad_out, blocked_saved, heads, blocked_layout), atol=1e-6
    )


def test_kernel_supports_16_bit_heads_up_to_256():
    assert supports_varlen(torch.empty(1, 256, dtype=torch.bfloat16))
    assert not supports_varlen(torch.empty(1, 64))
    assert not supports_varlen(torch.empty(1, 512, dtype=torch.bfloat16))
    assert not supports_varlen(torch.empty(1, 100, dtype=torch.bfloat16))


@pytest.mark.parametrize("causal_argument", [True, False])
@pytest.mark.parametrize(("grouped", "key_heads"), [("works", 2), ("raises", 6), ("is wrong", 6)])
def test_older_versions_of_pytorch_give_the_same_attention(varlen, monkeypatch, causal_argument, grouped, key_heads):
    states = torch.randn(30, 10, 4, generator=torch.Generator().manual_seed(1))
    layout = build_varlen_layout((0, 12, 30), 5, CPU)
    expected, saved = varlen_attention_forward(states, HEADS, layout)
    expected_gradient = varlen_attention_backward(expected, saved)
    calls = install_kernel(monkeypatch, varlen, causal_argument=causal_argument, grouped=grouped)
    attn_out, saved = varlen_attention_forward(states, HEADS, layout)
    assert torch.allclose(attn_out, expected, atol=1e-6)
    assert torch.allclose(varlen_attention_backward(expected, saved), expected_gradient, atol=1e-6)
    assert calls[-1] == key_heads


def test_kernel_is_tried_once(varlen, monkeypatch):
    calls = install_kernel(monkeypatch, varlen)
    states, layout = torch.randn(8, 10, 4), build_varlen_layout((0, 8), 0, CPU)
    for _ in range(3):
        varlen_attention_forward(states, HEADS, layout)
    assert len(calls) == 2 + 3


def test_missing_window_is_an_error_before_training(varlen, monkeypatch):
    install_kernel(monkeypatch, varlen, causal_argument=True)
    layout = build_varlen_layout((0, 8), 0, CPU)
    with pytest.raises(NotImplementedError, match="window"):
        varlen_attention_forward(torch.randn(8, 10, 4), replace(HEADS, window=4), layout)
