"""Where `lora_chat/planning/layer_bytes.json` comes from: dry runs whose widths tell every tensor's shape by its size.

Each live byte of a dry run becomes a term such as 2 * tokens * hidden; the sums at the moments that can be largest are
the closed form. Written by `python -m tests.planning.derivation`.
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
"""Flat rows through fused layers; rows side by side through transformers'; with a mask; without gradients."""
MODES = ("4bit", "8bit", "none")
_WIDTHS = Widths(hidden_size=15 * 113, intermediate_size=2 * 4099, num_heads=15, num_kv_heads=3, head_dim=104)
_ROWS, _LENGTH, _RANK = 2, 1009, 11
_TOKENS = _ROWS * _LENGTH
_MULTIPLES = (1, 2, 4, 8, 3, 6, 12, 16, 0.5, 5, 10, 24)


def derive(architecture: str, variant: str, mode: str, *, checkpointed: bool, num_kv_heads: int) -> dict[str, Any]:
    """What one more decoder layer keeps, what the rest of the model keeps, and the peaks above both."""
    two, three = (_watch(architecture, variant, mode, layers, checkpointed, num_kv_heads) for layers in (2, 3))
    found: dict[str, Any] = {}
    for part in ("forward", "backward") if variant != "read" else ("forward",):
        layer = three.held[part] - two.held[part]
        found[part] = {
            "layer": _named(layer),
            "rest": _named(two.held[part] - 2 * layer),
            "peaks": [_named(peak) for peak in _largest([m - two.held[part] for m in two.moments[part]])],
        }
    return found


_NAMES = ("Th", "Tq", "Tk", "Tf", "Tn", "Tr", "Td", "T", "Tl", "Tln", "rh", "rq", "rk", "rf", "hf", "hq", "hk")
"""Terms: tokens, hidden, query, key and inner width, number of heads, rank, head size, length of a row."""


def _named(vector: Any) -> str:
    return " ".join(f"{c:g}{name}" for name, c in zip(_NAMES, vector, strict=True) if abs(c) > 1e-6)


class _Watch(LiveBytes):
    """Live bytes as a vector over `_NAMES`."""

    def __init__(self, widths: Widths, length: int) -> None:
        super().__init__()
        self.sum = np.zeros(len(_NAMES))
        self.moments: dict[str, list[Any]] = {"forward": [], "backward": []}
        self.held: dict[str, Any] = {}
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
            self.held["forward"] = self.sum
        if phase == "backward":
            self.held["backward"] = self.sum


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
    """Bytes of one tensor -> terms; tensors of neither tokens nor weights are too small to count."""
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
def _usual() -> Any:
    """Terms of the shapes and settings that people use, one a row; seeded."""
    dice, rows = random.Random(7), []
    for _ in range(2000):
        h = dice.choice([576, 768, 960, 1536, 2048, 2304, 2560, 3072, 4096, 5120])
        q, n = h * dice.choice([0.5, 1, 1, 1, 1.33, 2]), dice.choice([8, 12, 16, 24, 32])
        k, f = q / dice.choice([1, 2, 3, 4, 8]), h * dice.choice([2.67, 3, 3.5, 4, 5, 8])
        r, length = dice.choice([8, 16, 32, 64, 128]), dice.choice([256, 512, 1024, 4096, 16384])
        t = length * dice.choice([1, 2, 4])
        rows.append([t * h, t * q, t * k, t * f, t * n, t * r, t * q / n, t, t * length, t * length * n])
        rows[-1] += [r * h, r * q, r * k, r * f, h * f, h * q, h * k]
    return np.array(rows, dtype=float)


def _largest(moments: list[Any]) -> list[Any]:
    """The fewest sums of which one is the largest, or within half a percent of it, wherever it is used."""
    unique = np.unique(np.round(np.array(moments), 4), axis=0)
    values = _usual() @ unique.T
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
"""Architectures with layers of their own; Mistral's and Qwen2's are Llama's."""


def names(architectures: tuple[str, ...] = LAYERS) -> Iterator[tuple[str, str, str, bool, int]]:
    """Architecture, variant, mode, whether checkpointed, and key heads of every entry."""
    for architecture, variant, mode in product(architectures, VARIANTS, MODES):
        for checkpointed in (False, True) if variant != "read" else (False,):
            yield architecture, variant, mode, checkpointed, _WIDTHS.num_kv_heads
            if variant in ("padded", "read") and architecture in _ONE_KEY_HEAD:
                yield architecture, variant, mode, checkpointed, 1


_ONE_KEY_HEAD = ("llama", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
"""Where a mask makes transformers repeat keys and values; of a single key head that takes no memory."""


def entry_name(architecture: str, variant: str, mode: str, checkpointed: bool, num_kv_heads: int) -> str:
    """Under which it stands in the table."""
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
