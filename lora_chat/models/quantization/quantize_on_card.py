"""4-bit quantization on a GPU of weights that are stored on the CPU, one weight after the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def quantized_on(card: "torch.device") -> Iterator[None]:
    """Let bitsandbytes quantize every 4-bit weight on a card until the block ends, and move it back to its device.

    The values are then those of a base that is loaded on the card, which may differ from a CPU's in the last digit of
    a scale, and a card is far faster. The card needs memory for one weight at a time.
    """
    from bitsandbytes.nn import Params4bit

    quantize = Params4bit._quantize

    def quantize_on_card(weight: Any, device: "torch.device") -> Any:
        quantized = quantize(weight, card)
        quantized.data = quantized.data.to(device)
        quantized.quant_state.to(device)
        return quantized

    Params4bit._quantize = quantize_on_card
    try:
        yield
    finally:
        Params4bit._quantize = quantize
