"""Weights that are quantized on a card and stored on the CPU have the values of the card."""

import bitsandbytes
import torch
from bitsandbytes.nn import Params4bit

from lora_chat.models.quantization.quantize_on_card import quantized_on


def test_quantizes_on_the_card_and_stores_on_the_device(monkeypatch):
    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = Params4bit(values.clone(), quant_type="nf4").to("cpu")
    moves, quantize_4bit = [], bitsandbytes.functional.quantize_4bit
    to = torch.Tensor.to
    card = torch.device("cpu", 0)  # the only other name of a device here

    def record(weight, **options):
        moves.append("quantized")
        return quantize_4bit(weight, **options)

    def record_move(tensor, *arguments, **options):
        moves.extend(["card"] * (options.get("device", arguments[0] if arguments else None) == card))
        return to(tensor, *arguments, **options)

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", record)
    monkeypatch.setattr(torch.Tensor, "to", record_move)
    with quantized_on(card):
        weight = Params4bit(values.clone(), quant_type="nf4").to("cpu")
    assert moves.index("card") < moves.index("quantized")
    assert torch.equal(weight.data, expected.data)
    assert torch.equal(weight.quant_state.absmax, expected.quant_state.absmax)
    assert weight.quant_state.absmax.device.type == weight.device.type == "cpu"
    assert "quantize_on_card" not in Params4bit._quantize.__name__
