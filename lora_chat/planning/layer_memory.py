"""What decoder layers allocate, as sums of products of widths.

`estimate_layer_passes.json` is not written by hand: tests/planning/derivation.py runs each architecture on
PyTorch's meta device with widths that tell every tensor's shape by its size, and keeps the sums at the moments that
can be largest.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from lora_chat.models.shape import ModelShape

LayerVariant = Literal["fast", "stock", "padded", "read"]
"""Flat rows through fused layers; rows side by side through transformers'; with a mask; without gradients."""
QuantizationMode = Literal["4bit", "8bit", "none"]
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
class PassMemory:
    """Bytes of one pass, forward or backward."""

    layer: int
    """Kept by each decoder layer until the pass ends (forward) or begins (backward)."""
    rest: int
    """Kept by the rest of the model."""
    peak: int
    """The most above both."""


def estimate_layer_passes(
    shape: ModelShape,
    variant: LayerVariant,
    mode: QuantizationMode,
    rank: int,
    batch: MicroBatch,
    *,
    checkpointed: bool = False,
) -> tuple[PassMemory, PassMemory]:
    """Forward and backward; a variant that reads has no backward."""
    name, end = f"{shape.layer_family} {variant}", f" {mode}{' checkpointed' if checkpointed else ''}"
    alone = shape.num_kv_heads in (1, shape.num_heads)  # then a mask makes no copies of keys and values
    entry = (alone and _load_layer_terms().get(name + " one" + end)) or _load_layer_terms()[name + end]
    sizes = {
        "T": batch.tokens,
        "h": shape.hidden_size,
        "q": shape.q_size,
        "k": shape.kv_size,
        "f": shape.intermediate_size,
        "n": shape.num_heads,
        "r": rank,
        "d": shape.head_dim,
        "l": batch.longest,
    }
    nothing = {"layer": "", "rest": "", "peaks": [""]}
    forward, backward = (entry.get(name, nothing) for name in ("forward", "backward"))
    return _evaluate_pass(forward, sizes), _evaluate_pass(backward, sizes)


def _evaluate_pass(entry: Mapping[str, object], sizes: Mapping[str, int]) -> PassMemory:
    peaks = entry["peaks"]
    assert isinstance(peaks, list)
    most = max((evaluate_terms(str(peak), sizes) for peak in peaks), default=0)
    return PassMemory(
        evaluate_terms(str(entry["layer"]), sizes), evaluate_terms(str(entry["rest"]), sizes), max(0, most)
    )


def evaluate_terms(terms: str, sizes: Mapping[str, int]) -> int:
    """`12Th 2hf` with T = 4, h = 3, f = 5 is 174."""
    total = 0.0
    for coefficient, factors in _TERM.findall(terms):
        product = float(coefficient)
        for factor in factors:
            product *= sizes[factor]
        total += product
    return round(total)


@cache
def _load_layer_terms() -> dict[str, dict[str, Mapping[str, object]]]:
    found: dict[str, dict[str, Mapping[str, object]]] = json.loads(
        files("lora_chat.planning").joinpath("layer_bytes.json").read_text(encoding="utf-8")
    )
    return found
