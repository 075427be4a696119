"""Dropout whose mask is a function of each token's key, so that no layout of the batch changes it."""

import torch

from lora_chat.training.counter_random import iterate_random_bits

_LEVELS = 2**16
"""Number of values of a random number, which is compared with the share of dropped values."""


def find_dropouts(model: torch.nn.Module) -> dict[str, torch.nn.Dropout]:
    """Return the dropout layers of a model that drop anything, by name: those of LoRA and those of the base."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    return {name: layer for name, layer in layers.items() if 0 < layer.p < 1}


def matches_tokens(values: torch.Tensor, keys: torch.Tensor, *, is_lora: bool) -> bool:
    """Return whether values are (rows, tokens, size) or (rows * tokens, size) for keys (rows, tokens).

    Inputs of LoRA may also be (rows, 1, tokens, size), which the base's dropout has for the weights of attention.
    """
    if values.dim() == 4 and is_lora:
        return values.shape[1] == 1 and values.shape[::2][:2] == keys.shape
    if values.dim() == 3:
        return values.shape[:2] == keys.shape
    return values.dim() == 2 and len(values) == keys.numel()


def drop(values: torch.Tensor, keys: torch.Tensor, stream: int, share: float) -> torch.Tensor:
    """Return values that match the keys, with a share of them set to zero and the others scaled up."""
    threshold = min(round(share * _LEVELS), _LEVELS - 1)
    size = values.shape[-1]
    dropped = torch.empty(keys.numel(), size, dtype=torch.bool, device=values.device)
    for rows, bits in iterate_random_bits(keys.flatten(), stream, size):
        torch.lt(bits, threshold - _LEVELS // 2, out=dropped[rows])
    return (values * (_LEVELS / (_LEVELS - threshold))).masked_fill_(dropped.view(values.shape), 0)
