"""What decoder layers allocate, as sums of products of widths.

`layer_bytes.json` is not written by hand: tests/planning/derivation.py runs each architecture on PyTorch's meta device
with widths that tell every tensor's shape by its size, and keeps the sums at the moments that can be largest.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from lora_chat.models.shape import ModelShape

Variant = Literal["fast", "stock", "padded", "read"]
"""Flat rows through fused layers; rows side by side through transformers'; with a mask; without gradients."""
Mode = Literal["4bit", "8bit", "none"]
_TERM = re.compile(r"(-?[0-9.]+)([A-Za-z]+)")


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together."""

    tokens: int
    """With padding."""
    longest: int
    """Tokens of the longest row."""
    supervised: int
    """Tokens that carry loss."""


@dataclass(frozen=True)
class Pass:
    """Bytes of one pass, forward or backward."""

    layer: int
    """Kept by each decoder layer until the pass ends (forward) or begins (backward)."""
    rest: int
    """Kept by the rest of the model."""
    peak: int
    """The most above both."""


def layer_bytes(
    shape: ModelShape, variant: Variant, mode: Mode, rank: int, batch: MicroBatch, *, checkpointed: bool = False
) -> tuple[Pass, Pass]:
    """Forward and backward; a variant that reads has no backward."""
    name, end = f"{shape.layers} {variant}", f" {mode}{' checkpointed' if checkpointed else ''}"
    alone = shape.key_heads in (1, shape.heads)  # then a mask makes no copies of keys and values
    entry = (alone and _table().get(name + " one" + end)) or _table()[name + end]
    sizes = {
        "T": batch.tokens,
        "h": shape.hidden,
        "q": shape.query,
        "k": shape.key,
        "f": shape.inner,
        "n": shape.heads,
        "r": rank,
        "d": shape.head_size,
        "l": batch.longest,
    }
    nothing = {"layer": "", "rest": "", "peaks": [""]}
    forward, backward = (entry.get(name, nothing) for name in ("forward", "backward"))
    return _evaluate(forward, sizes), _evaluate(backward, sizes)


def _evaluate(entry: Mapping[str, object], sizes: Mapping[str, int]) -> Pass:
    peaks = entry["peaks"]
    assert isinstance(peaks, list)
    most = max((evaluate(str(peak), sizes) for peak in peaks), default=0)
    return Pass(evaluate(str(entry["layer"]), sizes), evaluate(str(entry["rest"]), sizes), max(0, most))


def evaluate(terms: str, sizes: Mapping[str, int]) -> int:
    """`12Th 2hf` with T = 4, h = 3, f = 5 is 174."""
    total = 0.0
    for coefficient, factors in _TERM.findall(terms):
        product = float(coefficient)
        for factor in factors:
            product *= sizes[factor]
        total += product
    return round(total)


@cache
def _table() -> dict[str, dict[str, Mapping[str, object]]]:
    found: dict[str, dict[str, Mapping[str, object]]] = json.loads(
        files("lora_chat.planning").joinpath("layer_bytes.json").read_text(encoding="utf-8")
    )
    return found
