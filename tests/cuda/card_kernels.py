"""Functions for operations of CUDA that have no CPU kernel. They get and return tensors in main memory."""

import torch
import torch.nn.attention.varlen  # it defines the operations of torch_attn

_LIMITED_HEAD_SIZE = 256
"""Largest head size of the flash attention kernels."""


def register(stand_ins):
    """Add the functions to the table that maps an operation to its function."""
    aten, attention = torch.ops.aten, torch.ops.torch_attn
    stand_ins[attention._varlen_attn.default] = _varlen_attention
    stand_ins[attention._varlen_attn_backward.default] = _varlen_attention_backward
    stand_ins[aten._fused_sdp_choice.default] = _choose_attention
    stand_ins[aten.native_dropout.default] = _dropout
    for packet in (aten._softmax, aten._log_softmax):
        stand_ins[packet.out] = _make_widening_softmax(packet.default)
    for packet in (aten._softmax_backward_data, aten._log_softmax_backward_data):
        stand_ins[packet.out] = _make_narrowing_gradient(packet.default)
    for name in ("mm", "bmm", "addmm", "baddbmm"):
        packet = getattr(aten, name)
        stand_ins[packet.dtype] = _make_mixed_product(name)
        stand_ins[packet.dtype_out] = _make_mixed_product(name)


def _make_mixed_product(name):
    """Return a product of 16-bit matrices whose result has another dtype, as cuBLAS computes it."""

    def compute(*args, out=None, beta=1, alpha=1, **_):
        *added, left, right, dtype = args
        product = (left.float() @ right.float()).to(dtype)
        result = product if not added else beta * added[0].to(dtype) + alpha * product
        return result if out is None else out.copy_(result)

    return compute


def _make_widening_softmax(operation):
    """Return a softmax of fp16 values that can have a result in fp32."""

    def compute(values, dimension, half_to_float, out):
        return out.copy_(operation(values.float() if half_to_float else values, dimension, False))

    return compute


def _make_narrowing_gradient(operation):
    """Return the gradient of a softmax whose result was wider than its input."""

    def compute(gradient, output, dimension, input_dtype, **results):
        (result,) = results.values()  # `grad_input` or `out`
        return result.copy_(operation(gradient, output, dimension, output.dtype))

    return compute


def _dropout(values, probability, train, generator=None):
    if train is False or probability == 0:
        return values.clone(), torch.ones_like(values, dtype=torch.bool)
    mask = torch.empty_like(values, dtype=torch.float32).bernoulli_(1 - probability, generator=generator)
    return values * mask.to(values.dtype) / (1 - probability), mask.bool()


def _choose_attention(*args, **kwargs):
    """Choose the mathematical attention, because the fused kernels of CUDA have no counterpart in main memory."""
    return 0


def _varlen_attention(q, k, v, edges, key_edges, max_q, max_k, causal, scale, window, *rest):
    """Compute attention in segments after the checks of aten/src/ATen/native/transformers/cuda/flash_attn."""
    refusals = {
        "FlashAttention only supports Ampere GPUs or newer.": torch.cuda.get_device_capability() < (8, 0),
        "FlashAttention only support fp16 and bf16 data type": q.dtype not in (torch.float16, torch.bfloat16),
        "query and key must have the same dtype": not q.dtype == k.dtype == v.dtype,
        "head_size must be a multiple of 8": q.shape[-1] % 8 != 0,
        "FlashAttention forward only supports head dimension at most 256": q.shape[-1] > _LIMITED_HEAD_SIZE,
        "cu_seqlens_q must have dtype int32": edges.dtype != torch.int32,
        "cu_seqlens_k must have dtype int32": key_edges.dtype != torch.int32,
        "Input tensor must have contiguous last dimension": any(x.stride(-1) != 1 for x in (q, k, v)),
        "Number of heads in key/value must divide number of heads in query": q.shape[1] % k.shape[1] != 0,
        "max_seqlen_q is smaller than a segment": int(edges.diff().max()) > int(max_q),
        "max_seqlen_k is smaller than a segment": int(key_edges.diff().max()) > int(max_k),
        "the segments must end at the last token": int(edges[-1]) != len(q) or int(key_edges[-1]) != len(k),
    }
    for message, refused in refusals.items():
        if refused:
            raise RuntimeError(message)
    with torch.no_grad():
        result = _attend_segments(q, k, v, edges.tolist(), key_edges.tolist(), scale, causal, window)
    return result.to(q.dtype), torch.zeros(q.shape[1], q.shape[0]), torch.zeros(2, dtype=torch.uint64)


def _varlen_attention_backward(
    grad, q, k, v, out, logsumexp, edges, key_edges, max_q, max_k, causal, rng_state, scale=None, window=(-1, -1), *rest
):
    with torch.enable_grad(), torch.inference_mode(False):
        leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
        result = _attend_segments(*leaves, edges.tolist(), key_edges.tolist(), scale, causal, window)
        gradients = torch.autograd.grad(result, leaves, grad.float())
    return tuple(gradient.to(q.dtype) for gradient in gradients)


def _attend_segments(q, k, v, edges, key_edges, scale, causal, window):
    """Return the attention of each segment in fp32; the last query and the last key of a segment are aligned."""
    left, right = window or (-1, -1)
    right = 0 if causal else right
    groups, results = q.shape[1] // k.shape[1], []
    for start, end, key_start, key_end in zip(edges, edges[1:], key_edges, key_edges[1:], strict=False):
        queries = q[start:end].transpose(0, 1).float()
        keys, values = (x[key_start:key_end].transpose(0, 1).float().repeat_interleave(groups, dim=0) for x in (k, v))
        distance = torch.arange(end - start)[:, None] + (key_end - key_start) - (end - start)
        distance = distance - torch.arange(key_end - key_start)
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if right >= 0:
            hidden |= distance < -right
        if left >= 0:
            hidden |= distance > left
        scores = queries @ keys.transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        results.append((weights @ values).transpose(0, 1))
    return torch.cat(results)
