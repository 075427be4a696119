"""RMS norm (arXiv 1910.07467) and its gradient, by kernels that read the states once."""

import torch
from torch.nn.functional import batch_norm


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x (tokens, size), weight (size,) -> the normed states and 1 / rms (tokens, 1) in fp32.

    Rounds where transformers does: once before the weight, once after it.
    """
    squares = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square_().div_(x.shape[1])
    scale = (squares + epsilon).rsqrt_()
    return _scaled(x, squares, weight, epsilon), scale.unsqueeze(1)


def rms_norm_again(x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The normed states, from what `rms_norm` returned."""
    return _scaled(x, scale.squeeze(1).pow(-2).sub_(epsilon), weight, epsilon)


def rms_norm_gradient(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, plus: torch.Tensor
) -> torch.Tensor:
    """`plus` + the gradient of the states; the weight is frozen.

    Layer norm's gradient with a mean of zero, to which what it takes off for the mean is given back.
    """
    size = x.shape[1]
    no_mean = torch.zeros_like(scale)
    result: torch.Tensor = torch.ops.aten.native_layer_norm_backward(
        gradient, x, [size], no_mean, scale, weight.float(), None, [True, False, False]
    )[0]
    mean = torch.mv(gradient, weight).unsqueeze(1).mul_((scale / size).to(x.dtype))
    return result.add_(mean).add_(plus)


def _scaled(x: torch.Tensor, squares: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Batch norm over "channels" that are tokens: one pass in fp32, rounded once."""
    normed = batch_norm(x.unsqueeze(0), torch.zeros_like(squares), squares, eps=epsilon)
    return normed.squeeze(0).mul_(weight)
