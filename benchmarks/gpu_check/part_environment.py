"""Part `environment`: device rules, versions, the attention kernel, bitsandbytes and compilers."""

import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from check_records import Records
from child_command import card_command, is_rehearsal
from part_arguments import read_part_arguments

_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "pyarrow", "triton",
             "huggingface-hub", "safetensors", "tokenizers", "numpy", "kernels", "flash-attn", "unsloth")  # fmt: skip
_EXPANDABLE_PROGRAM = (
    "import torch; x = [torch.empty(2**24, device='cuda') for _ in range(4)]; torch.cuda.synchronize(); print('works')"
)
_TRITON_PROGRAM = """
import torch, triton, triton.language as tl

@triton.jit
def double(pointer, n: tl.constexpr):
    offsets = tl.arange(0, n)
    tl.store(pointer + offsets, 2 * tl.load(pointer + offsets))

x = torch.ones(128, device="cuda")
double[(1,)](x, 128)
assert x.sum().item() == 256
print("works")
"""


def main() -> None:
    """Record the facts of this machine, and check the parts of PyTorch that training uses."""
    _, work = read_part_arguments()
    records = Records()
    if not records.check("a CUDA device", torch.cuda.is_available(), "torch.cuda.is_available() is false"):
        return
    records.add_figures("device", **describe_device())
    records.add_figures("versions", python=platform.python_version(), **read_versions())
    records.add_figures("compilers", **describe_compilers(work))
    check_matrix_speed(records)
    check_bitsandbytes(records)
    for head_dim in (64, 128, 256):
        check_varlen(records, head_dim, window=None)
        check_varlen(records, head_dim, window=100)
    check_doctor(records)


def describe_device() -> dict[str, Any]:
    """Return name, memory, capability and driver of the card, and the kernels of PyTorch."""
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "name": properties.name,
        "memory_gib": total / 2**30,
        "free_gib": free / 2**30,
        "capability": list(torch.cuda.get_device_capability(0)),
        "architectures": torch.cuda.get_arch_list(),
        "driver": read_driver(),
        "cuda": torch.version.cuda,
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        "cards": torch.cuda.device_count(),
    }


def read_driver() -> str:
    """Return the version of the driver from NVML, or a reason why it is unknown."""
    try:
        import pynvml

        pynvml.nvmlInit()
        version: str | bytes = pynvml.nvmlSystemGetDriverVersion()
    except Exception as error:  # no library, or a card that is not there
        return f"unknown ({type(error).__name__})"
    return version.decode() if isinstance(version, bytes) else version


def read_versions() -> dict[str, str]:
    """Return the versions of the installed packages that matter."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "-"
    return versions


def describe_compilers(work: Path) -> dict[str, Any]:
    """Return the compilers and headers that Triton needs, and whether it and expandable segments work."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    program = work / "triton_check.py"
    program.write_text(_TRITON_PROGRAM, encoding="utf-8")
    not_on_emulated = "not tried on an emulated card" if is_rehearsal() else ""
    return {
        "gcc": shutil.which("gcc") or shutil.which("cc") or "-",
        "python_header": header.is_file(),
        "triton": not_on_emulated or run_python([str(program)]),
        "expandable_segments": not_on_emulated or run_python(["-c", _EXPANDABLE_PROGRAM], expandable=True),
    }


def run_python(arguments: list[str], *, expandable: bool = False) -> str:
    """Run a small program in a process and return its last line."""
    setting = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if expandable else {}
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter with a program of this file
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
            env=os.environ | setting,
        )
    except subprocess.TimeoutExpired:
        return "no answer in 40 s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return lines[-1][:120] if lines else f"exit code {done.returncode}"


def check_matrix_speed(records: Records) -> None:
    """Record the speed of a bf16 matrix product and of a copy, as the planner measures them."""
    from lora_chat.planning.local_device import detect_local_device
    from lora_chat.system.hardware import detect_hardware

    if is_rehearsal():
        records.skip("matrix speed", "an emulated card has none")
        return
    speed = detect_local_device(detect_hardware()).speed
    assert speed is not None
    records.add_figures("speed", tflops=speed.flops / 1e12, gb_per_second=speed.bandwidth / 1e9)


def check_bitsandbytes(records: Records) -> None:
    """Check that the native library of bitsandbytes quantizes on the card and back."""
    import bitsandbytes as bnb
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    library = getattr(getattr(bnb.cextension, "lib", None), "_lib", None)
    values = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16)
    try:
        packed, state = quantize_4bit(values, quant_type="nf4")
        error = (dequantize_4bit(packed, state) - values).float().norm() / values.float().norm()
        detail = f"relative error {float(error):.3f} of {getattr(library, '_name', library)}"
        records.check("bitsandbytes NF4", 0.02 < float(error) < 0.2, detail)
        records.add_figures("bitsandbytes", library=str(getattr(library, "_name", library)), nf4_error=float(error))
        layer: Any = bnb.nn.Int8Params(values, requires_grad=False, has_fp16_weights=False)._quantize("cuda")
        records.check("bitsandbytes int8", layer.dtype == torch.int8, str(layer.dtype))
    except Exception as error:  # any failure of the library is the result
        records.check("bitsandbytes", False, f"{type(error).__name__}: {error}")


def check_varlen(records: Records, head_dim: int, window: int | None) -> None:
    """Compare variable-length attention with fewer key heads and a shared prefix with plain attention."""
    from lora_chat.training.fast_path.attention.cpu import HeadConfig
    from lora_chat.training.fast_path.attention.gpu import (
        build_varlen_layout,
        varlen_attention_backward,
        varlen_attention_forward,
    )

    name = f"varlen attention, head size {head_dim}" + (f", window {window}" if window else "")
    heads = HeadConfig(4, 2, head_dim, head_dim**-0.5, window)
    prefix, borders = 40, (0, 300, 420, 421, 600)
    torch.manual_seed(0)
    states, grad_out = (torch.randn(600, n, head_dim, device="cuda", dtype=torch.bfloat16) for n in (8, 4))
    try:
        attn_out, saved = varlen_attention_forward(states, heads, build_varlen_layout(borders, prefix, states.device))
        gradient = varlen_attention_backward(grad_out, saved)
    except Exception as error:  # a missing kernel or another signature is the result
        varlen = importlib.import_module("torch.nn.attention.varlen")
        parameters = list(inspect.signature(varlen.varlen_attn).parameters)
        records.check(name, False, f"{type(error).__name__}: {str(error).splitlines()[0]} {parameters}")
        return
    expected, exact = plain_attention(states, grad_out, heads, borders, prefix)
    errors = [float((a.float() - b).norm() / b.norm()) for a, b in ((attn_out.detach(), expected), (gradient, exact))]
    records.check(name, max(errors) < 0.02, f"relative errors {errors[0]:.4f} and {errors[1]:.4f} of the gradient")
    records.add_figures(name, output=errors[0], gradient=errors[1])


def plain_attention(
    states: torch.Tensor, grad_out: torch.Tensor, heads: Any, borders: tuple[int, ...], prefix: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output and gradient of attention in fp32, each sequence for itself after the prefix."""
    leaf, parts = states.float().requires_grad_(), []
    repeats = heads.num_heads // heads.num_kv_heads
    for number, (begin, end) in enumerate(pairwise(borders)):
        own = torch.cat([leaf[:prefix], leaf[begin:end]]) if number else leaf[begin:end]
        q, k, v = torch.split(own, [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], dim=1)
        k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * heads.scale
        positions = torch.arange(len(own), device=states.device)
        distance = positions[:, None] - positions[None]
        hidden = (distance < 0) | (distance >= (heads.window or len(own)))
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", weights, v)[prefix if number else 0 :])
    output = torch.cat(parts)
    (gradient,) = torch.autograd.grad(output, leaf, grad_out.float())
    return output.detach(), gradient


def check_doctor(records: Records) -> None:
    """Record the answer of `lora-chat doctor`, if this version has the command."""
    done = subprocess.run(  # noqa: S603 - the command line of this package
        card_command(["-m", "lora_chat", "doctor", "--json"]), capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode == 2:
        records.skip("doctor", "this version has no such command")
        return
    if records.check("doctor", done.returncode in (0, 1), done.stderr.strip()[-200:]):
        try:
            report = json.loads(done.stdout)
            notes = [f"{c['name']}: {c['text']}" for c in report["checks"] if c["state"] != "ok"]
            records.add_figures("doctor", verdict=report["verdict"], notes=notes)
        except (ValueError, TypeError, KeyError):
            records.add_figures("doctor", text=done.stdout[-2000:])


if __name__ == "__main__":
    main()
