"""Measure training on one GPU, lora_chat beside TRL. Weights and rows are random, so no network is needed.

    python benchmarks/throughput/gpu.py --shape 1b [--tokens 2048 4096] [--steps 8] [--work DIR] [--json RESULT.json]

Every setting is a fresh process. First, variable-length attention is compared with each segment on this device. The
table shows supervised tokens per second, ratio to lora_chat, peak allocated memory, and model FLOP utilisation: the
operations that training needs per second (no recomputation; the head on supervised tokens only) as a share of the rate
of the largest square product. The 8B shape takes 16 GB of disk in --work.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ceiling import flops_per_token
from launching import Run, measure, run_program
from random_work import SHAPES
from summary import rate
from trainers import Trainer, find_trainers
from work_folder import WorkFolder

_SQUARE = 8192
_RANK = 16


def settings(names: list[str] | None, tokens: int) -> list[Trainer]:
    """Return the named trainers, or lora_chat with and without checkpointing, TRL's defaults, and TRL's likely best."""
    if names:
        return find_trainers(names)
    ours: dict[str, Any] = {"training.fast_path": True, "training.micro_batch_tokens": tokens}
    keeping = ours | {"training.gradient_checkpointing": False}
    return [
        Trainer("ours", "ours", keeping),
        Trainer("ours, checkpointing", "ours", ours | {"training.gradient_checkpointing": True}),
        Trainer("ours, bf16 base", "ours", keeping | {"quantization.mode": "none"}),
        *find_trainers(["trl-sft", "trl-bf16"]),
        Trainer("trl 8 rows", "trl", {"batch": 8, "accumulation": 1, "checkpointing": False, "dtype": "bfloat16"}),
        Trainer("trl 1 x 8", "trl", {"batch": 1, "accumulation": 8, "checkpointing": False, "dtype": "bfloat16"}),
    ]


def square_rate() -> float:
    """Measure GFLOP/s of the largest square bf16 product; on a CPU a small one, to test this script."""
    cuda = torch.cuda.is_available()
    size = _SQUARE if cuda else 512
    a = torch.randn(size, size, device="cuda" if cuda else "cpu", dtype=torch.bfloat16)
    rates = []
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(10):
            a @ a
        if cuda:
            torch.cuda.synchronize()
        rates.append(10 * 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return statistics.median(rates[1:])


def check_attention() -> str:
    """Compare variable-length attention with a shared prefix with each segment computed separately; return one line."""
    from lora_chat.training.fast_path.attention.cpu import HeadConfig
    from lora_chat.training.fast_path.attention.gpu import (
        build_varlen_layout,
        varlen_attention_backward,
        varlen_attention_forward,
    )

    if not torch.cuda.is_available():
        return "no GPU: not checked"
    heads, prefix, cu_seqlens = HeadConfig(8, 2, 64, 0.125, None), 40, (0, 300, 420, 421, 900)
    states, grad_out = (torch.randn(900, n, 64, device="cuda", dtype=torch.bfloat16) for n in (12, 8))
    try:
        attn_out, saved = varlen_attention_forward(
            states, heads, build_varlen_layout(cu_seqlens, prefix, states.device)
        )
        gradient = varlen_attention_backward(grad_out, saved)
    except (RuntimeError, TypeError) as error:
        return f"failed: {str(error).splitlines()[0]}"
    leaf = states.float().requires_grad_()
    parts = []
    for number in range(len(cu_seqlens) - 1):
        own = leaf[cu_seqlens[number] : cu_seqlens[number + 1]]
        whole = torch.cat([leaf[:prefix], own]) if number else own
        q, k, v = (part.transpose(0, 1)[None] for part in torch.split(whole, [8, 2, 2], dim=1))
        result = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125, enable_gqa=True)
        parts.append(result[0].transpose(0, 1)[prefix if number else 0 :])
    expected = torch.cat(parts)
    (exact,) = torch.autograd.grad(expected, leaf, grad_out.float())
    off = [(a.float() - b).norm() / b.norm() for a, b in ((attn_out, expected.detach()), (gradient, exact))]
    return f"off by {off[0]:.4f}, gradient by {off[1]:.4f} (bf16 rounding is about 0.004)"


def line(runs: list[Run], warmup: int, ours: float, flops: float, peak: float) -> tuple[str, float]:
    """Return the row of a setting and its rate."""
    results = [run.result for run in runs if run.result]
    if not results:
        return f"{runs[0].trainer:22} failed: {runs[0].error.splitlines()[-1][:90]}", 0.0
    supervised_rate = statistics.median(rate(result, "supervised_tokens", "step_seconds", warmup) for result in results)
    tokens = statistics.median(rate(result, "tokens", "step_seconds", warmup) for result in results)
    memory = max(result["peak_gpu_bytes"] for result in results) / 2**30
    share = tokens * flops / 1e9 / peak
    ratio = (ours or supervised_rate) / supervised_rate
    return f"{runs[0].trainer:22} {supervised_rate:14.0f} {ratio:9.2f} {memory:9.2f} {share:9.1%}", supervised_rate


def main() -> None:
    """Write the work folders, measure and print."""
    arguments = argparse.ArgumentParser(description="training on one GPU, lora_chat beside TRL")
    arguments.add_argument("--shape", choices=SHAPES, default="1b")
    arguments.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096])
    arguments.add_argument("--steps", type=int, default=8)
    arguments.add_argument("--warmup", type=int, default=3)
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--trainers", nargs="+")
    arguments.add_argument("--work", type=Path)
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    peak = square_rate()
    print(
        f"{name}, {options.shape}, {options.steps} steps, the first {options.warmup} not timed, {options.rounds} rounds"
    )
    print(f"square product {peak / 1000:.0f} TFLOP/s; attention {check_attention()}\n", flush=True)
    report: dict[str, Any] = {"device": name, "square_gflops": peak, "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        folder_of_work = options.work or Path(folder)
        for tokens in options.tokens:
            work = WorkFolder(folder_of_work / f"{options.shape}-{tokens}")
            arguments_of_work = ["--work", str(work.path), "--base", str(folder_of_work / f"{options.shape}-base")]
            run_program(sys.executable, "random_work.py", *arguments_of_work, "--shape", options.shape,
                        "--tokens", str(tokens))  # fmt: skip
            facts = work.read_facts()
            config = json.loads((work.base / "config.json").read_text(encoding="utf-8"))
            flops = flops_per_token(config, facts["average_context"], facts["supervised_share"], _RANK)
            trainers = settings(options.trainers, tokens)
            runs = [
                measure(trainer, sys.executable, work.path, options.steps, number)
                for number in range(options.rounds)
                for trainer in trainers
            ]
            report["runs"] += [asdict(run) for run in runs]
            title = f"8 dialogues, {tokens} tokens"
            print(f"{title:22} {'supervised/s':>14} {'ours is x':>9} {'GPU GiB':>9} {'MFU':>9}")
            ours = 0.0
            for trainer in trainers:
                row, fast = line([r for r in runs if r.trainer == trainer.name], options.warmup, ours, flops, peak)
                ours = ours or fast
                print(row, flush=True)
            print()
            if options.json:
                options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    versions: dict[str, str] = next((run["result"]["versions"] for run in report["runs"] if run["result"]), {})
    print(", ".join(f"{package} {version}" for package, version in versions.items()))


if __name__ == "__main__":
    main()
