"""Measure a runner in the same way for every trainer: seconds and losses of steps, memory; write one line of JSON."""

import ctypes
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import TrainerCallback
from work_folder import StepWork

_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")


class StepClock(TrainerCallback):
    """A clock of steps in wall and processor time, with loss and gradient norm.

    A step starts at the end of the previous one, so it includes collating and logging.
    """

    def __init__(self) -> None:
        self.start_seconds = 0.0
        self.step_seconds: list[float] = []
        self.step_cpu_seconds: list[float] = []
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.logs: list[dict[str, Any]] = []
        self.others_cpus = 0.0
        """Number of processors that other programs or the host used during the steps."""
        self._last = (0.0, 0.0)
        self._first = (0.0, 0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.start_seconds:
            self.start_seconds = seconds_since_start()
            self._last = (time.perf_counter(), time.process_time())
            self._first = (*self._last, machine_busy_seconds())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall, processor = time.perf_counter(), time.process_time()
        self.step_seconds.append(wall - self._last[0])
        self.step_cpu_seconds.append(processor - self._last[1])
        self._last = (wall, processor)
        others = machine_busy_seconds() - self._first[2] - (processor - self._first[1])
        self.others_cpus = max(0.0, others / (wall - self._first[0]))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.losses.append(float(logs["loss"]))
            self.grad_norms.append(float(logs.get("grad_norm", 0.0)))
            self.logs.append(dict(logs))

    def report(self, work: Sequence[StepWork], **more: Any) -> dict[str, Any]:
        """Return the result of a runner, from the work of its steps."""
        if not len(self.step_seconds) == len(self.losses) == len(work):
            raise RuntimeError(f"{len(self.step_seconds)} steps and {len(self.losses)} losses, not {len(work)}")
        return {
            "step_seconds": self.step_seconds,
            "step_cpu_seconds": self.step_cpu_seconds,
            "losses": self.losses,
            "supervised_tokens": [step.supervised_tokens for step in work],
            "tokens": [step.tokens for step in work],
            "dialogues": [step.dialogues for step in work],
            "grad_norms": self.grad_norms,
            "others_cpus": self.others_cpus,
            "peak_rss_bytes": peak_rss_bytes(),
            "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
            "start_seconds": self.start_seconds,
            "versions": versions(),
            **more,
        }


def reserve_stdout() -> TextIO:
    """Return a stream on stdout for the result. All other output, also from C code, goes to stderr from now on."""
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(2, 1)
    return result


def write_result(result: dict[str, Any], stream: TextIO) -> None:
    """Write one line of JSON."""
    stream.write(json.dumps(result) + "\n")
    stream.close()


def seconds_since_start() -> float:
    """Return the age of this process in seconds, imports included."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def machine_busy_seconds() -> float:
    """Return the processor time of all processes since boot, including time that the host took (steal)."""
    times = [int(field) for field in Path("/proc/stat").read_text().split(maxsplit=11)[1:9]]
    user, nice, system, _idle, _waiting, irq, softirq, steal = times
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def versions() -> dict[str, str]:
    """Return the versions of the interpreter and of the relevant installed packages."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of mapping large ones again. Any user could set this."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(option, 2**31 - 1)
