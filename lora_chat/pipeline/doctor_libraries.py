"""Checks of the libraries on the chosen device: each is tried with a few numbers."""

import inspect
import shutil
import sysconfig
from pathlib import Path
from typing import Literal

from lora_chat.config.plan import FAST_PATH_CAPABILITY, make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.errors import UnavailableError
from lora_chat.pipeline.doctor_machine import CheckResult, Machine
from lora_chat.system.torch_build import read_installed_version

_NO_DEVICE = CheckResult("note", "not tried, because there is no device")


def check_torch(machine: Machine) -> CheckResult:
    """Name the build of PyTorch."""
    build = machine.build
    if build is None:
        return CheckResult("problem", str(machine.error).splitlines()[0], machine.error)
    kernels = f", kernels for {', '.join(build.architectures)}" if build.architectures else ""
    return CheckResult("ok", build.name + kernels)


def check_device(machine: Machine) -> CheckResult:
    """Name the chosen device and the reason."""
    if machine.build is None:
        return _NO_DEVICE
    if machine.choice is None or machine.hardware is None:
        return CheckResult("problem", str(machine.error).splitlines()[0], machine.error)
    hardware = machine.hardware
    name = "the CPU" if hardware.device == "cpu" else hardware.name
    return CheckResult("ok", f"{name}, because {machine.choice.reason}")


def check_bitsandbytes(machine: Machine) -> CheckResult:
    """Try 4-bit and 8-bit quantization on the device."""
    if machine.device is None or read_installed_version("bitsandbytes") is None:
        return _NO_DEVICE
    from lora_chat.models.quantization.self_test import read_native_library, try_quantization

    modes: tuple[Literal["4bit", "8bit"], ...] = ("4bit", "8bit")
    try:
        problems = {mode: try_quantization(mode, machine.device) for mode in modes}
        library = read_native_library()
    except (ImportError, OSError, RuntimeError) as error:
        problems, library = dict.fromkeys(modes, str(error).splitlines()[0]), "no library"
    results = ", ".join(f"{mode} {f'fails ({problem})' if problem else 'works'}" for mode, problem in problems.items())
    text = f"{library}: {results}"
    if problems["4bit"]:
        reason = f"bitsandbytes cannot quantize to 4 bits on {machine.device}: {problems['4bit']}."
        fix = "Fix: --set quantization.mode=none, or base.device=cpu."
        return CheckResult("problem", text, UnavailableError(f"{reason}\n{fix}"))
    return CheckResult("note" if problems["8bit"] else "ok", text)


def check_fast_path(machine: Machine) -> CheckResult:
    """Try the attention of the fast path on the device."""
    hardware = machine.hardware
    if machine.device is None or hardware is None:
        return _NO_DEVICE
    plan = make_plan(Recipe.model_validate({"data": {"train": "dialogues.jsonl"}}), hardware)
    state = "on" if plan.training.fast_path else "off by default"
    if hardware.device == "cuda" and (hardware.capability or (0, 0)) < FAST_PATH_CAPABILITY:
        return CheckResult("note", f"{state}, because its attention kernel needs compute capability 8.0")
    import torch

    from lora_chat.training.fast_path.self_test import try_packed_attention

    problem = try_packed_attention(machine.device, getattr(torch, plan.precision.dtype))
    kernel = f"; varlen kernel {_describe_kernel()}" if hardware.device == "cuda" else ""
    if problem:
        return CheckResult(
            "note", f"{state}, but its attention fails here ({problem}), so the stock path is used{kernel}"
        )
    return CheckResult("ok", f"{state}, and its attention works here{kernel}; each base is checked before training")


def _describe_kernel() -> str:
    """Return whether PyTorch's kernel takes fewer key heads by itself; versions before 2.12 lack the argument."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return "missing"
    has_argument = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return "with enable_gqa" if has_argument else "without enable_gqa"


def check_float32(machine: Machine) -> CheckResult:
    """Report whether fp32 products are rounded to TF32."""
    hardware = machine.hardware
    if hardware is None:
        return _NO_DEVICE
    if hardware.device == "cpu" or (hardware.capability or (0, 0)) < (8, 0):
        return CheckResult("ok", "exact; this device has no TF32")
    import torch

    is_rounded = torch.get_float32_matmul_precision() != "highest"
    return CheckResult("ok", "rounded to TF32" if is_rounded else "exact; TF32 is off")


def check_compiler(machine: Machine) -> CheckResult:
    """Look for a C compiler and Python's headers, which only Triton needs."""
    compiler = next((name for name in ("gcc", "clang", "cc", "cl") if shutil.which(name)), None)
    has_header = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    installed = f"{compiler or 'no C compiler'}, {'Python.h' if has_header else 'no Python.h'}"
    triton = read_installed_version("triton") or read_installed_version("triton-windows")
    text = f"{installed}, {f'Triton {triton}' if triton else 'no Triton'}; the fast path needs none of these"
    return CheckResult("ok", text)
