"""Replacements of bitsandbytes' layers on the meta device, which allocate and save the same bytes."""

from typing import Any, Literal

import bitsandbytes as bnb
import torch
from transformers.pytorch_utils import Conv1D


class _Nf4Product(torch.autograd.Function):
    """Replacement of bitsandbytes' MatMul4Bit, which dequantizes for each product and saves nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        return torch.nn.functional.linear(x, make_dense_weight(layer, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] @ make_dense_weight(ctx.layer, gradients[0].dtype), None


def make_dense_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a dequantized weight, allocated beside its scales as bitsandbytes does."""
    scales = torch.empty(layer.in_features * layer.out_features // 64, device="meta")  # of double quantisation
    dense = torch.empty(layer.out_features, layer.in_features, dtype=dtype, device="meta")
    del scales
    return dense


class Linear4bit(bnb.nn.Linear4bit):
    """A linear layer with NF4 weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Nf4Product.apply(x.to(self.compute_dtype), self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Int8Product(torch.autograd.Function):
    """Replacement of bitsandbytes' MatMul8bitLt, which rounds states to int8, adds in int32 and saves its input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer, ctx.x = layer, x
        flat = x.reshape(-1, x.shape[-1])
        half = flat.to(torch.float16)
        rounded = torch.empty_like(half, dtype=torch.int8)
        del half
        sums = torch.empty(flat.shape[0], layer.out_features, dtype=torch.int32, device="meta")
        y = torch.empty_like(sums, dtype=x.dtype)
        del sums, rounded
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        layer, gradient = ctx.layer, gradients[0]
        dense = torch.empty(layer.out_features, layer.in_features, dtype=gradient.dtype, device="meta")
        return gradient @ dense, None


class Linear8bitLt(bnb.nn.Linear8bitLt):
    """A linear layer with weights of LLM.int8."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Int8Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


def quantize(model: Any, mode: Literal["4bit", "8bit"]) -> None:
    """Replace the linear layers of a model, except its head, by quantized ones without values."""
    kind = Linear4bit if mode == "4bit" else Linear8bitLt
    setattr(model, f"is_loaded_in_{mode}", True)
    model.is_quantized = True
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear | Conv1D) or module is head:
            continue
        conv = isinstance(module, Conv1D)
        in_features, out_features = module.weight.shape if conv else module.weight.shape[::-1]
        bias = module.bias is not None
        if kind is Linear4bit:
            new = Linear4bit(in_features, out_features, bias=bias, compute_dtype=torch.bfloat16)
            # 4 bits a weight, one byte for 64 weights, one float for 256 of these
            count = in_features * out_features
            size = -(-count // 2) + -(-count // 64) + 4 * -(-count // (64 * 256)) + 1024 + 64
        else:
            new = Linear8bitLt(in_features, out_features, bias=bias, has_fp16_weights=False)
            size = in_features * out_features + 4 * out_features
        weight: Any = torch.nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        weight.compress_statistics, weight.quant_type, weight.blocksize = True, "nf4", 64  # PEFT copies these
        new.weight = weight
        if bias:
            empty = torch.empty(out_features, dtype=torch.bfloat16, device="meta")
            new.bias = torch.nn.Parameter(empty, requires_grad=False)
        model.set_submodule(name, new)
