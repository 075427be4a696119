"""Checks of the machine that need no PyTorch: system, driver, cards, memory, disk, and installed packages."""

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from lora_chat.errors import LoraChatError, MissingPackageError, first_line
from lora_chat.models.bundled import CHAT_BASE, is_bundled_base_prepared, needs_download
from lora_chat.models.bundled_gguf import WHEEL
from lora_chat.system.cache_dir import cache_dir
from lora_chat.system.console import format_bytes
from lora_chat.system.device_choice import DEVICE_VARIABLE, DeviceChoice, choose_device
from lora_chat.system.hardware import Hardware, detect_hardware
from lora_chat.system.memory_usage import free_memory_bytes, total_memory_bytes
from lora_chat.system.nvidia_driver import DriverReport, NvidiaCard, read_nvidia_driver
from lora_chat.system.operating_system import is_wsl
from lora_chat.system.torch_build import TorchBuild, read_installed_version, read_torch_build
from lora_chat.system.visible_cards import VISIBLE_VARIABLE, VisibleCard, find_visible_cards

_LIBRARIES = ("transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "safetensors")
_EXTRAS = {
    "gguf": ("llama-cpp-python", "exports to llama.cpp"),
    "sign": ("model-signing", "signs parcels"),
    "tensorboard": ("tensorboard", "writes TensorBoard events"),
}
"""Package and purpose of each optional extra of lora_chat."""
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_SETTINGS = (
    *(DEVICE_VARIABLE, VISIBLE_VARIABLE, "CUDA_DEVICE_ORDER", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("OMP_NUM_THREADS", "CUDA_LAUNCH_BLOCKING", "BNB_CUDA_VERSION"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
"""Environment variables that decide the device, the speed, or the number of this process."""
_LOW_DISK_BYTES = 10**9


@dataclass(frozen=True)
class CheckResult:
    """The result of a check."""

    state: Literal["ok", "note", "problem"]
    text: str
    error: LoraChatError | None = None
    """Reason why `sft` cannot run, if this is one."""


@dataclass(frozen=True)
class Machine:
    """Facts that several checks need."""

    report: DriverReport
    visible: tuple[VisibleCard, ...]
    """Cards that were visible before one was chosen."""
    settings: dict[str, str]
    """Environment variables before the choice."""
    build: TorchBuild | None
    choice: DeviceChoice | None
    hardware: Hardware | None
    error: LoraChatError | None
    """Reason why there is no device."""

    @property
    def device(self) -> str | None:
        """Return the device for PyTorch."""
        if self.hardware is None:
            return None
        return "cpu" if self.hardware.device == "cpu" else f"cuda:{self.hardware.index or 0}"


def inspect_machine() -> Machine:
    """Collect the facts. The device is chosen as for a recipe that says `auto`."""
    report = read_nvidia_driver()
    visible = tuple(find_visible_cards(report.driver.cards)) if report.driver else ()
    settings = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    try:
        build = read_torch_build()
    except (ImportError, OSError, AttributeError) as error:
        reason = first_line(error)
        missing = MissingPackageError(
            f"PyTorch cannot be imported: {reason}.\nFix: install it again: make install, or pip install torch."
        )
        return Machine(report, visible, settings, None, None, None, missing)
    try:
        hardware = detect_hardware()
        return Machine(report, visible, settings, build, choose_device(), hardware, None)
    except LoraChatError as error:
        return Machine(report, visible, settings, build, None, None, error)


def check_system(machine: Machine) -> CheckResult:
    """Name Python and the operating system."""
    text = f"Python {platform.python_version()} on {platform.system()} {platform.release()}, {platform.machine()}"
    if is_wsl():
        return CheckResult(
            "note",
            f"{text}\nWSL: a full card does not run out of memory but spills into main memory, which is much "
            "slower.\nThe memory limit of the plan (training.memory) prevents that.",
        )
    return CheckResult("ok", text)


def check_libraries(machine: Machine) -> CheckResult:
    """List the versions of the required libraries."""
    versions = {name: read_installed_version(name) for name in _LIBRARIES}
    if missing := [name for name, version in versions.items() if version is None]:
        text = f"missing: {', '.join(missing)}"
        fix = f"pip install {' '.join(missing)}"
        return CheckResult("problem", text, MissingPackageError(f"Required packages are {text}. Fix: {fix}"))
    return CheckResult("ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def check_driver(machine: Machine) -> CheckResult:
    """Compare the driver with the one that PyTorch needs."""
    driver, build = machine.report.driver, machine.build
    wanted = f"PyTorch needs {build.min_driver} or newer" if build and build.min_driver else ""
    if driver is None:
        state: Literal["ok", "problem"] = "problem" if machine.report.is_broken else "ok"
        return CheckResult(state, f"no NVIDIA driver ({machine.report.problem})" + (f"; {wanted}" if wanted else ""))
    text = f"NVIDIA {driver.version}, for CUDA up to {driver.cuda[0]}.{driver.cuda[1]}" + (
        f"; {wanted}" if wanted else ""
    )
    return CheckResult("ok" if build is None or build.runs_on_driver(driver) else "problem", text)


def check_cards(machine: Machine) -> CheckResult:
    """Describe every card of the machine."""
    if machine.report.driver is None or not machine.report.driver.cards:
        return CheckResult("ok", "none that NVML reports")
    visible = [entry.card for entry in machine.visible]
    lines = [_format_card(card, visible, machine.build) for card in machine.report.driver.cards]
    return CheckResult("note" if any("no kernels" in line for line in lines) else "ok", "\n".join(lines))


def _format_card(card: NvidiaCard, visible: list[NvidiaCard | None], build: TorchBuild | None) -> str:
    """Format the facts about one card."""
    number = f"cuda:{visible.index(card)}" if card in visible else "hidden"
    has_kernels = build is not None and build.has_kernels_for(card.capability)
    kernels = "kernels in this build" if has_kernels else "no kernels in this build"
    precision = "bf16" if card.capability >= (8, 0) else "no bf16: fp16 with a gradient scaler"
    memory = (
        f"{format_bytes(card.free_bytes)} of {format_bytes(card.total_bytes)} free"
        if card.total_bytes
        else "shared memory"
    )
    major, minor = card.capability
    return f"{number} {card.name}: capability {major}.{minor}, {kernels}, {precision}, {memory}"


def check_memory(machine: Machine) -> CheckResult:
    """Report the main memory."""
    return CheckResult(
        "ok", f"{format_bytes(free_memory_bytes())} free of {format_bytes(total_memory_bytes())} main memory"
    )


def check_disk(machine: Machine) -> CheckResult:
    """Report the free space where runs and the cache are written."""
    try:
        cache = cache_dir()
    except LoraChatError as error:
        return CheckResult("problem", str(error).splitlines()[0], error)
    folders = {"here": Path.cwd(), "in the cache": cache}
    free = {label: shutil.disk_usage(folder).free for label, folder in folders.items()}
    text = ", ".join(f"{format_bytes(size)} free {label}" for label, size in free.items())
    return CheckResult("note" if min(free.values()) < _LOW_DISK_BYTES else "ok", text)


def check_base(machine: Machine) -> CheckResult:
    """Report whether the embedded base is on this machine."""
    try:
        if needs_download(CHAT_BASE):
            return CheckResult(
                "note",
                f"{CHAT_BASE} is fetched from the package index when it is first used ({format_bytes(WHEEL.size)})\n"
                "Now, or from a file: lora-chat fetch-base [FILE]",
            )
        is_prepared = is_bundled_base_prepared(CHAT_BASE)
    except LoraChatError as error:  # the check of the disk reports the cache
        return CheckResult("note", str(error).splitlines()[0])
    return CheckResult("ok", f"{CHAT_BASE} is {'ready' if is_prepared else 'installed and prepared by its first use'}")


def check_hub(machine: Machine) -> CheckResult:
    """Report the settings of the hub, without contacting it."""
    offline = [name for name in _OFFLINE_VARIABLES if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname  # without a password
    if offline:
        return CheckResult("note", f"offline ({', '.join(offline)}): only bases on this machine are used")
    return CheckResult("ok", f"online settings, for {host}; not contacted now")


def check_extras(machine: Machine) -> CheckResult:
    """List the optional extras."""

    def describe(name: str) -> str:
        package, purpose = _EXTRAS[name]
        if read_installed_version(package):
            return f"{name} is on"
        return f"{name} is off (pip install 'lora-chat[{name}]' {purpose})"

    return CheckResult("ok", ", ".join(map(describe, _EXTRAS)))


def check_settings(machine: Machine) -> CheckResult:
    """List the environment variables that decide the device or the speed."""
    is_slow = machine.settings.get("CUDA_LAUNCH_BLOCKING") == "1"
    text = ", ".join(f"{name}={value}" for name, value in machine.settings.items()) or "no variable is set"
    return CheckResult("note" if is_slow else "ok", text + (" (waits for every kernel)" if is_slow else ""))
