"""Measure how fast this machine multiplies bf16 matrices of the model's shapes, and count operations per token.

    python benchmarks/throughput/ceiling.py --base DIR [--rounds 7]

The ceiling of a model is the rate of one pass through all products of its layers, each at its best rate. The operations
per token are the minimum without recomputation: forward, gradients of activations and of LoRA, and the head on
supervised tokens only. Elementwise work is not counted, so no trainer reaches a share of 1, unless it computes a shared
beginning of dialogues only once.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from measuring import machine_busy_seconds

_TOKENS = (2048, 4096)
_COPIES = 8
"""Number of weights used in turn, like layers, so that none stays in the nearest cache."""
_SQUARE = 4096
_SECONDS = 0.15
"""Minimum duration of a round, in seconds."""


def read_sizes(config: dict[str, Any]) -> dict[str, int]:
    """Return the hidden, query, key-value, feed-forward and vocabulary sizes, and the number of layers."""
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return {
        "hidden": config["hidden_size"],
        "query": heads * head,
        "kv": (config.get("num_key_value_heads") or heads) * head,
        "ffn": config["intermediate_size"],
        "vocabulary": config["vocab_size"],
        "layers": config["num_hidden_layers"],
    }


def layer_products(config: dict[str, Any]) -> list[tuple[int, int]]:
    """Return (in, out) of every linear layer of one block: q, k, v, o, gate, up, down."""
    size = read_sizes(config)
    hidden, query, kv, ffn = size["hidden"], size["query"], size["kv"], size["ffn"]
    return [(hidden, query), (hidden, kv), (hidden, kv), (query, hidden), (hidden, ffn), (hidden, ffn), (ffn, hidden)]


def flops_per_token(config: dict[str, Any], average_context: float, supervised_share: float, rank: int) -> float:
    """Return the operations that training needs per token, supervised or not.

    `average_context` is the mean number of positions a token attends to, itself included.
    """
    size, products = read_sizes(config), layer_products(config)
    linear = 2.0 * size["layers"] * sum(a * b for a, b in products)
    attention = 4.0 * size["layers"] * size["query"] * average_context
    lora = 2.0 * size["layers"] * rank * sum(a + b for a, b in products)
    head = 2.0 * size["hidden"] * size["vocabulary"] * supervised_share
    forward = linear + attention + lora + head
    backward = linear + 2.5 * attention + 2.0 * lora + head
    return forward + backward


def product_rates(rows: int, inner: int, columns: int, rounds: int, copies: int) -> dict[str, float]:
    """Measure GFLOP/s of (rows, inner) @ (inner, columns) in bf16; return the best and the median round."""
    x = torch.randn(rows, inner).to(torch.bfloat16)
    weights = [torch.randn(inner, columns).to(torch.bfloat16) for _ in range(copies)]
    work = 2.0 * rows * inner * columns * copies / 1e9
    started = time.perf_counter()
    for weight in weights:  # the first pass compiles kernels
        x @ weight
    repeats = 1 + int(_SECONDS / (time.perf_counter() - started))
    rates = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(repeats):
            for weight in weights:
                x @ weight
        rates.append(work * repeats / (time.perf_counter() - started))
    return {"best": max(rates), "median": statistics.median(rates)}


@torch.no_grad()
def measure_ceiling(config: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Measure GFLOP/s of every shape, of a square product, and of a pass through the model's layers."""
    products = layer_products(config)
    started = (time.perf_counter(), time.process_time(), machine_busy_seconds())
    shapes = {
        (tokens, *shape): product_rates(tokens, *shape, rounds, _COPIES)
        for tokens in _TOKENS
        for shape in dict.fromkeys(products)
    }
    model = {
        kind: max(
            sum(a * b for a, b in products) / sum(a * b / shapes[tokens, a, b][kind] for a, b in products)
            for tokens in _TOKENS
        )
        for kind in ("best", "median")
    }
    square = product_rates(_SQUARE, _SQUARE, _SQUARE, max(2, rounds // 2), 1)
    others = machine_busy_seconds() - started[2] - (time.process_time() - started[1])
    return {
        "threads": torch.get_num_threads(),
        "others_cpus": max(0.0, others / (time.perf_counter() - started[0])),
        "square": square,
        "shapes": {"x".join(map(str, shape)): rates for shape, rates in shapes.items()},
        "model": model,
    }


def main() -> None:
    """Measure and print JSON."""
    arguments = argparse.ArgumentParser(description="bf16 matrix products of a model's shapes, in GFLOP/s")
    arguments.add_argument("--base", type=Path, required=True)
    arguments.add_argument("--rounds", type=int, default=7)
    options = arguments.parse_args()
    print(json.dumps(measure_ceiling(json.loads((options.base / "config.json").read_text()), options.rounds)))


if __name__ == "__main__":
    main()
