"""Bytes that decoder layers allocate, as sums of products of widths.

`layer_bytes.json` is generated: tests/planning/derivation.py runs each architecture on PyTorch's meta device with
widths from which the shape of every tensor can be read off its size, and keeps the sums at the possible peaks.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, Protocol, TypedDict, runtime_checkable

from lora_chat.config.stored_quantization import QuantizationMode
from lora_chat.models.shape import ModelShape

LayerVariant = Literal["fast", "stock", "padded", "read"]
"""Packed rows in fused layers; batched rows in transformers' layers; the latter with a mask; without gradients."""
_TERM = re.compile(r"(-?[0-9.]+)([A-Za-z]+)")


@dataclass(frozen=True)
class MicroBatch:
    """The size of one micro-batch: the rows that pass through the model together."""

    tokens: int
    """Tokens of all rows, with padding."""
    longest: int
    """Tokens of the longest row."""
    supervised: int
    """Supervised tokens of all rows."""


@dataclass(frozen=True)
class PassMemory:
    """Bytes of one pass, forward or backward."""

    layer: int
    """Bytes that each decoder layer keeps until the pass ends (forward) or begins (backward)."""
    rest: int
    """Bytes that the rest of the model keeps."""
    peak: int
    """Largest number of further bytes at any moment."""


@runtime_checkable
class _HasLayerPasses(Protocol):
    """A shape that was measured (`measured_shape`), so that no closed form is needed."""

    def layer_passes(
        self, variant: LayerVariant, mode: QuantizationMode, batch: MicroBatch, *, checkpointed: bool
    ) -> tuple[PassMemory, PassMemory]:
        """Return the memory of the forward and of the backward pass."""


class _PassTerms(TypedDict):
    """One pass of an entry of `layer_bytes.json`; each string is a sum for `evaluate_terms`."""

    layer: str
    rest: str
    peaks: list[str]


def estimate_layer_passes(
    shape: ModelShape,
    variant: LayerVariant,
    mode: QuantizationMode,
    rank: int,
    batch: MicroBatch,
    *,
    checkpointed: bool = False,
) -> tuple[PassMemory, PassMemory]:
    """Return the memory of the forward and of the backward pass; the latter is zero for the variant `read`."""
    if isinstance(shape, _HasLayerPasses):
        return shape.layer_passes(variant, mode, batch, checkpointed=checkpointed)
    name, suffix = f"{shape.layer_family} {variant}", f" {mode}{' checkpointed' if checkpointed else ''}"
    # With one key head, or one for each query head, a mask makes no copies of keys and values.
    without_copies = shape.num_kv_heads in (1, shape.num_heads)
    table = _load_layer_terms()
    entry = (without_copies and table.get(name + " one" + suffix)) or table[name + suffix]
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
    no_terms = _PassTerms(layer="", rest="", peaks=[""])
    forward, backward = (entry.get(name, no_terms) for name in ("forward", "backward"))
    return _evaluate_pass(forward, sizes), _evaluate_pass(backward, sizes)


def _evaluate_pass(terms: _PassTerms, sizes: Mapping[str, int]) -> PassMemory:
    """Return the bytes of one pass for these sizes."""
    peak = max((evaluate_terms(peak, sizes) for peak in terms["peaks"]), default=0)
    return PassMemory(evaluate_terms(terms["layer"], sizes), evaluate_terms(terms["rest"], sizes), max(0, peak))


def evaluate_terms(terms: str, sizes: Mapping[str, int]) -> int:
    """Return the value of a sum of products: `12Th 2hf` with T = 4, h = 3, f = 5 is 174."""
    total = 0.0
    for coefficient, factors in _TERM.findall(terms):
        product = float(coefficient)
        for factor in factors:
            product *= sizes[factor]
        total += product
    return round(total)


@cache
def _load_layer_terms() -> dict[str, dict[str, _PassTerms]]:
    """Read the table: for each entry, the terms of `forward` and `backward`."""
    table: dict[str, dict[str, _PassTerms]] = json.loads(
        files("lora_chat.planning").joinpath("layer_bytes.json").read_text(encoding="utf-8")
    )
    return table
