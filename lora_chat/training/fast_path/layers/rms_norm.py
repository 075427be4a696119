"""RMS norm (arXiv 1910.07467) and its gradient, by kernels that read the states once."""

import torch
from torch.nn.functional import batch_norm
from torch.nn.functional import rms_norm as stock_rms_norm


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x (tokens, size), weight (size,) -> the normed states, and the mean squares (tokens,) in fp32.

    Rounds where transformers does: once before the weight, once after it. On a GPU PyTorch's own kernel, which
    shows no squares: there they are empty.
    """
    if x.device.type != "cpu":
        none = x.new_empty(0)
        return rms_norm_from_mean_squares(x, none, weight, epsilon), none
    mean_squares = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square_().div_(x.shape[1])
    return rms_norm_from_mean_squares(x, mean_squares, weight, epsilon), mean_squares


def rms_norm_from_mean_squares(
    x: torch.Tensor, mean_squares: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """The normed states from the mean squares: batch norm over "channels" that are tokens, one pass in fp32."""
    if x.device.type != "cpu":
        return stock_rms_norm(x, [x.shape[1]], eps=epsilon).mul_(weight)
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
    """`residual` + the gradient of the states; the weight is frozen.

    Layer norm's gradient with a mean of zero, to which what it takes off for the mean is given back.
    """
    if x.device.type != "cpu":
        stock = rms_norm_backward_by_autograd(grad_out, x, weight, epsilon)
        return stock if residual is None else stock.add_(residual)
    size = x.shape[1]
    scale = (mean_squares + epsilon).rsqrt_().unsqueeze(1)
    result: torch.Tensor = torch.ops.aten.native_layer_norm_backward(
        grad_out, x, [size], torch.zeros_like(scale), scale, weight.float(), None, [True, False, False]
    )[0]
    result += torch.mv(grad_out, weight).unsqueeze(1).mul_((scale / size).to(x.dtype))
    return result if residual is None else result.add_(residual)


def rms_norm_backward_by_autograd(
    grad_out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """The same from PyTorch's kernel, where that is the faster one: on a GPU."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        normed = stock_rms_norm(leaf, [x.shape[1]], eps=epsilon)
    return torch.autograd.grad(normed, leaf, grad_out * weight)[0]
