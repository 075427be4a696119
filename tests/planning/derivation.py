"""Generator of `lora_chat/planning/layer_bytes.json`: dry runs with widths that make every tensor's size unique.

Each live byte of a dry run becomes a term such as 2 * tokens * hidden. The sums at the possible peaks are the closed
form. Run it with `python -m tests.planning.derivation`.
"""

import json
import random
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tests.planning.dry_run import LiveBytes, Setting, dry_run
from tests.planning.shapes import Widths, fit, make_config

TABLE = Path(__file__).parents[2] / "lora_chat" / "planning" / "layer_bytes.json"
VARIANTS = ("fast", "stock", "padded", "read")
"""Packed rows in fused layers; batched rows in transformers' layers; the latter with a mask; without gradients."""
MODES = ("4bit", "8bit", "none")
_WIDTHS = Widths(hidden_size=15 * 113, intermediate_size=2 * 4099, num_heads=15, num_kv_heads=3, head_dim=104)
_ROWS, _LENGTH, _RANK = 2, 1009, 11
_TOKENS = _ROWS * _LENGTH
_MULTIPLES = (1, 2, 4, 8, 3, 6, 12, 16, 0.5, 5, 10, 24)


def derive(architecture: str, variant: str, mode: str, *, checkpointed: bool, num_kv_heads: int) -> dict[str, Any]:
    """Return the bytes that a decoder layer keeps, those that the rest of the model keeps, and the further peaks."""
    two, three = (_watch(architecture, variant, mode, layers, checkpointed, num_kv_heads) for layers in (2, 3))
    entry: dict[str, Any] = {}
    for part in ("forward", "backward") if variant != "read" else ("forward",):
        layer = three.kept[part] - two.kept[part]
        entry[part] = {
            "layer": _format_terms(layer),
            "rest": _format_terms(two.kept[part] - 2 * layer),
            "peaks": [_format_terms(peak) for peak in _select_largest([m - two.kept[part] for m in two.moments[part]])],
        }
    return entry


_NAMES = ("Th", "Tq", "Tk", "Tf", "Tn", "Tr", "Td", "T", "Tl", "Tln", "rh", "rq", "rk", "rf", "hf", "hq", "hk")
"""Terms of tokens, hidden, query, key and intermediate size, number of heads, rank, head size and row length."""


def _format_terms(vector: Any) -> str:
    return " ".join(f"{c:g}{name}" for name, c in zip(_NAMES, vector, strict=True) if abs(c) > 1e-6)


class _Watch(LiveBytes):
    """Counter of live bytes as a vector over `_NAMES`."""

    def __init__(self, widths: Widths, length: int) -> None:
        super().__init__()
        self.sum = np.zeros(len(_NAMES))
        self.moments: dict[str, list[Any]] = {"forward": [], "backward": []}
        self.kept: dict[str, Any] = {}
        self._widths, self._length = widths, length
        self._terms: dict[int, Any] = {}

    def add(self, size: int, times: int) -> None:
        super().add(size, times)
        if size not in self._terms:
            self._terms[size] = _decode(size, self._widths, self._length)
        self.sum = self.sum + times * self._terms[size]
        if times > 0 and self.phase in self.moments:
            self.moments[self.phase].append(self.sum)

    def enter(self, phase: str) -> None:
        super().enter(phase)
        if phase == "forward":
            self.sum = np.zeros(len(_NAMES))
        if phase == "between":
            self.kept["forward"] = self.sum
        if phase == "backward":
            self.kept["backward"] = self.sum


def _watch(architecture: str, variant: str, mode: str, layers: int, checkpointed: bool, num_kv_heads: int) -> _Watch:
    widths = fit(architecture, replace(_WIDTHS, num_kv_heads=num_kv_heads))
    setting = Setting(
        config=make_config(architecture, widths, layers, vocabulary=64),
        mode=mode,
        rank=_RANK,
        rows=1 if variant == "fast" else _ROWS,
        length=_TOKENS if variant == "fast" else _LENGTH,
        supervised=8,
        checkpointed=checkpointed,
        fast_path=variant == "fast",
        padded=variant in ("padded", "read"),
        learns=variant != "read",
    )
    watch = _Watch(widths, setting.length)
    dry_run(setting, watch)
    return watch


def _decode(size: int, widths: Widths, length: int) -> Any:
    """Return the terms of a tensor's bytes; tensors without tokens or weights are too small to count."""
    result = np.zeros(len(_NAMES))
    for names, value in _products(widths, length).items():
        for multiple in _MULTIPLES:
            if size == multiple * value:
                for name in names:
                    result[_NAMES.index(name)] += multiple
                return result
    if size % _TOKENS == 0:
        result[_NAMES.index("T")] = size / _TOKENS
    return result


@cache
def _products(w: Widths, length: int) -> dict[tuple[str, ...], int]:
    h, q, k, f, n, r = (
        w.hidden_size,
        w.num_heads * w.head_dim,
        w.num_kv_heads * w.head_dim,
        w.intermediate_size,
        w.num_heads,
        _RANK,
    )
    t = _TOKENS
    found: dict[tuple[str, ...], int] = {
        ("Th",): t * h,
        ("Tq",): t * q,
        ("Tk",): t * k,
        ("Tf",): t * f,
        ("Tr",): t * r,
        ("Tq", "Tk", "Tk"): t * (q + 2 * k),
        ("Tq", "Tk"): t * (q + k),
        ("Tk", "Tk"): 2 * t * k,
        ("Tn",): t * n,
        ("Td",): t * w.head_dim,
        ("Tl",): t * length,
        ("Tln",): t * length * n,
        ("rh",): r * h,
        ("rq",): r * q,
        ("rk",): r * k,
        ("rf",): r * f,
        ("rq", "rk", "rk"): r * (q + 2 * k),
        ("hf",): h * f,
        ("hq",): h * q,
        ("hk",): h * k,
        ("hq", "hk", "hk"): h * (q + 2 * k),
    }
    return found


@cache
def _usual_values() -> Any:
    """Return the values of the terms for usual shapes and settings, one row each; seeded."""
    generator, rows = random.Random(7), []
    for _ in range(2000):
        h = generator.choice([576, 768, 960, 1536, 2048, 2304, 2560, 3072, 4096, 5120])
        q, n = h * generator.choice([0.5, 1, 1, 1, 1.33, 2]), generator.choice([8, 12, 16, 24, 32])
        k, f = q / generator.choice([1, 2, 3, 4, 8]), h * generator.choice([2.67, 3, 3.5, 4, 5, 8])
        r, length = generator.choice([8, 16, 32, 64, 128]), generator.choice([256, 512, 1024, 4096, 16384])
        t = length * generator.choice([1, 2, 4])
        rows.append([t * h, t * q, t * k, t * f, t * n, t * r, t * q / n, t, t * length, t * length * n])
        rows[-1] += [r * h, r * q, r * k, r * f, h * f, h * q, h * k]
    return np.array(rows, dtype=float)


def _select_largest(moments: list[Any]) -> list[Any]:
    """Return the fewest sums of which, for every usual shape, one is within half a percent of the largest."""
    unique = np.unique(np.round(np.array(moments), 4), axis=0)
    values = _usual_values() @ unique.T
    most = values.max(axis=1)
    good = values >= most[:, None] - 0.005 * np.abs(most[:, None])
    chosen: list[int] = []
    open_rows = np.ones(len(values), dtype=bool)
    while open_rows.any():
        best = int(good[open_rows].sum(axis=0).argmax())
        chosen.append(best)
        open_rows &= ~good[:, best]
    return [unique[i] for i in chosen]


LAYERS = ("llama", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2")
"""Architectures with different layers; Mistral and Qwen2 have those of Llama."""


def names(architectures: tuple[str, ...] = LAYERS) -> Iterator[tuple[str, str, str, bool, int]]:
    """Yield architecture, variant, mode, whether checkpointed, and key heads of every entry."""
    for architecture, variant, mode in product(architectures, VARIANTS, MODES):
        if (variant, mode) == ("fast", "8bit"):  # fused layers dequantize 8-bit weights like 4-bit ones
            continue
        for checkpointed in (False, True) if variant != "read" else (False,):
            yield architecture, variant, mode, checkpointed, _WIDTHS.num_kv_heads
            if variant in ("padded", "read") and architecture in _ONE_KEY_HEAD:
                yield architecture, variant, mode, checkpointed, 1


_ONE_KEY_HEAD = ("llama", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
"""Architectures for which a mask makes transformers repeat keys and values; one key head needs no copy."""


def entry_name(architecture: str, variant: str, mode: str, checkpointed: bool, num_kv_heads: int) -> str:
    """Return the key of an entry in the table."""
    return f"{architecture} {variant}{' one' if num_kv_heads == 1 else ''} {mode}{' checkpointed' * checkpointed}"


def main() -> None:
    warnings.simplefilter("ignore")
    lines = []
    for architecture, variant, mode, checkpointed, key_heads in names():
        name = entry_name(architecture, variant, mode, checkpointed, key_heads)
        entry = derive(architecture, variant, mode, checkpointed=checkpointed, num_kv_heads=key_heads)
        lines.append(f"  {json.dumps(name)}: {json.dumps(entry)}")
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(lines)} entries in {TABLE}", file=sys.stderr)


if __name__ == "__main__":
    main()
