"""RMS norm (arXiv 1910.07467) and its gradient, by kernels that read the states once."""

import torch
from torch.nn.functional import batch_norm
from torch.nn.functional import rms_norm as stock_rms_norm


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normed states of x (tokens, size) with weight (size,), and the mean squares (tokens,) in fp32.

    It rounds like transformers: once before the weight and once after it. On a GPU it uses PyTorch's kernel, which
    does not return the mean squares, so they are empty.
    """
    if x.device.type != "cpu":
        no_squares = x.new_empty(0)
        return rms_norm_from_mean_squares(x, no_squares, weight, epsilon), no_squares
    mean_squares = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square_().div_(x.shape[1])
    return rms_norm_from_mean_squares(x, mean_squares, weight, epsilon), mean_squares


def rms_norm_from_mean_squares(
    x: torch.Tensor, mean_squares: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Return the normed states by a batch norm whose channels are the tokens, which takes one pass in fp32."""
    if x.device.type != "cpu":
        return stock_rms_norm(x, [x.shape[1]], eps=epsilon).mul_(weight)
    # With a mean of zero, the variance of a channel is its mean square.
    normed = batch_norm(x.unsqueeze(0), torch.zeros_like(mean_squares), mean_squares, eps=epsilon)
    return normed.squeeze(0).mul_(weight)


def rms_norm_backward(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    mean_squares: torch.Tensor,
    epsilon: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `residual` + the gradient of the states; the weight is frozen.

    It uses the gradient of layer norm with a mean of zero, and adds back the term that layer norm subtracts for the
    mean.
    """
    if x.device.type != "cpu":
        grad_x = rms_norm_backward_by_autograd(grad_out, x, weight, epsilon)
        return grad_x if residual is None else grad_x.add_(residual)
    size = x.shape[1]
    scale = (mean_squares + epsilon).rsqrt_().unsqueeze(1)
    # Gradient of layer norm with mean 0 and the given reciprocal of the standard deviation.
    result: torch.Tensor = torch.ops.aten.native_layer_norm_backward(
        grad_out, x, [size], torch.zeros_like(scale), scale, weight.float(), None, [True, False, False]
    )[0]
    # Layer norm subtracted the mean of grad_out * weight, scaled; RMS norm has no mean.
    result += torch.mv(grad_out, weight).unsqueeze(1).mul_((scale / size).to(x.dtype))
    return result if residual is None else result.add_(residual)


def rms_norm_backward_by_autograd(
    grad_out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Return the gradient of the states by PyTorch's kernel, which is faster on a GPU."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        normed = stock_rms_norm(leaf, [x.shape[1]], eps=epsilon)
    return torch.autograd.grad(normed, leaf, grad_out * weight)[0]
