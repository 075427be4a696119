"""Sum of the gradients of a step over the processes that computed parts of it."""

from collections.abc import Iterable

import torch

from lora_chat.errors import IntegrityError
from lora_chat.processes.group import ProcessGroup

_EXACT_INTEGER = 4096
"""Base of the two digits of a count; each is exact in fp32."""


class GradientSum:
    """One all-reduce per step of all gradients, flattened to fp32, with the loss and the number of tokens.

    The gradients of a share are divided by the supervised tokens of the whole step, so their sum is the gradient of the
    step's mean loss. It has the same bits in every process.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._buffer: torch.Tensor | None = None

    def sum_(
        self, parameters: Iterable[torch.nn.Parameter], loss: torch.Tensor, own_tokens: int, step_tokens: int
    ) -> torch.Tensor:
        """Replace the gradients of trained parameters by their sums, and return the loss of the step.

        Raise IntegrityError if the tokens of all shares, of which this process has `own_tokens`, are not `step_tokens`.
        """
        if self._group.size == 1:
            return loss
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in trained]
        if self._buffer is None:
            # The gradients, whether each exists, the loss, and the number of tokens in two digits.
            self._buffer = torch.empty(sum(sizes) + len(sizes) + 3, device=loss.device)
        *gradients, existing, figures = torch.split(self._buffer, [*sizes, len(sizes), 3])
        for gradient, parameter in zip(gradients, trained, strict=True):
            if parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad.flatten())
        existing.copy_(torch.tensor([float(parameter.grad is not None) for parameter in trained]))
        figures.copy_(torch.stack([loss.float(), *torch.tensor(divmod(own_tokens, _EXACT_INTEGER)).to(loss)]))
        self._group.sum_(self._buffer)
        high, low = figures[1:].tolist()
        if (total := round(high * _EXACT_INTEGER + low)) != step_tokens:
            raise IntegrityError(
                f"The processes have computed {total} supervised tokens in a step of {step_tokens}; nothing was saved "
                "of this step. Fix: use the same files and packages for all processes, then continue with --resume."
            )
        for gradient, parameter, count in zip(gradients, trained, existing.tolist(), strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient.view_as(parameter))
            elif count:
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype, copy=True)
        total_loss: torch.Tensor = figures[0].to(loss.dtype, copy=True)
        return total_loss
