"""The device of this process: the CPU, or one card, chosen before CUDA starts.

CUDA reads CUDA_VISIBLE_DEVICES once, when it starts. Therefore the choice is made from NVML, and the chosen card
becomes the only visible one of this process and of its workers, as card 0. Trainer would otherwise use all of them.
"""

import logging
import os
import re
from dataclasses import dataclass

from lora_chat.errors import RecipeError, UsageError
from lora_chat.system.device_checks import card_name, check_build, check_cuda_starts, make_broken_driver_error
from lora_chat.system.nvidia_driver import DriverReport, NvidiaDriver, read_nvidia_driver
from lora_chat.system.torch_build import TorchBuild, read_torch_build
from lora_chat.system.visible_cards import (
    HIDE_ALL,
    VISIBLE_VARIABLE,
    VisibleCard,
    find_visible_cards,
    hides_every_card,
)

logger = logging.getLogger(__name__)

DEVICE_VARIABLE = "LORA_CHAT_DEVICE"
"""Environment variable with the device of commands that have no recipe, and of recipes that say `auto`."""
DEVICE_PATTERN = r"^(auto|cpu|cuda|cuda:\d{1,3})$"
RECIPE_CPU_OPTION = "--set base.device=cpu"
VARIABLE_CPU_OPTION = f"{DEVICE_VARIABLE}=cpu in the environment"
_GIB = 2**30


@dataclass(frozen=True)
class DeviceChoice:
    """The device of this process, and the reason."""

    uses_cuda: bool
    reason: str
    """Reason of the choice, for a report about the machine."""
    notes: tuple[str, ...] = ()
    """Messages for the user, if the choice is not obvious."""
    index: int = 0
    """Number of the card for PyTorch in this process."""
    card: VisibleCard | None = None
    """The card in NVML, if it answers."""


@dataclass(frozen=True)
class _Applied:
    """The choice that this process made."""

    request: str
    choice: DeviceChoice
    before: str | None
    """CUDA_VISIBLE_DEVICES before the choice."""
    after: str | None


@dataclass(frozen=True)
class _Sharing:
    """The number of this process among the processes that share the cards of this machine."""

    index: int = 0
    size: int = 1
    may_see_own_card: bool = False
    """Whether each process may see only its own card, as Slurm can arrange it."""


_applied: _Applied | None = None
"""The last choice, because CUDA_VISIBLE_DEVICES shows only one card after it."""
_sharing = _Sharing()


def share_cards(index: int, size: int, *, may_see_own_card: bool = False) -> None:
    """Let each of `size` processes of this machine use another card; call it before the device is chosen."""
    global _sharing, _applied
    _sharing, _applied = _Sharing(index, size, may_see_own_card), None


def chosen_card_name() -> str:
    """Return an identifier of the chosen card; empty for the CPU, or if it is unknown."""
    choice = _applied.choice if _applied else None
    entry = choice.card.entry if choice and choice.card else ""
    return "" if entry.isdigit() else entry  # a number may mean another card in another process


def choose_device(request: str | None = None) -> DeviceChoice:
    """Choose the device, make it the only visible one, and log the reason once.

    `request` is the recipe's `base.device`; None is for commands without a recipe. Raises RecipeError for a device that
    this machine does not have, UnavailableError if PyTorch cannot use the GPU of this machine.
    """
    global _applied
    wanted = _resolve_request(request)
    before = os.environ.get(VISIBLE_VARIABLE)
    if _applied is not None and _applied.after == before:
        if _applied.request == wanted:
            return _applied.choice
        before = _applied.before
        _set_visible(before)
    choice = find_device(wanted, RECIPE_CPU_OPTION if request is not None else VARIABLE_CPU_OPTION)
    for note in choice.notes:
        logger.info(note)
    _applied = _Applied(wanted, choice, before, os.environ.get(VISIBLE_VARIABLE))
    return choice


def find_device(wanted: str, cpu_option: str) -> DeviceChoice:
    """Return the choice for `auto`, `cpu`, `cuda` or `cuda:N`; `cpu_option` is the advice for using the CPU instead."""
    if wanted == "cpu":
        return _use_cpu("the recipe or the environment asks for it")
    build, report = read_torch_build(), read_nvidia_driver()
    if build.rocm:
        return _choose_without_nvml(wanted, build, report, cpu_option)
    if hides_every_card() and (report.driver or report.is_broken):
        if wanted != "auto":
            raise RecipeError(
                f"{wanted} is not visible: {VISIBLE_VARIABLE} hides every card. Fix: unset {VISIBLE_VARIABLE}."
            )
        return _use_cpu(f"{VISIBLE_VARIABLE} hides every card", is_note=True)
    if report.driver is None:
        return _choose_without_nvml(wanted, build, report, cpu_option)
    visible = find_visible_cards(report.driver.cards)
    if not visible:
        if wanted != "auto":
            raise RecipeError(f"{wanted} is not visible: no NVIDIA card is. Fix: base.device=auto or cpu.")
        return _use_cpu(f"there is an NVIDIA driver ({report.driver.version}) but no card", is_note=True)
    return _choose_card(wanted, visible, build, report.driver, cpu_option)


def _resolve_request(request: str | None) -> str:
    """Return the device that the recipe asks for, else the environment variable's. Raises UsageError."""
    if request not in (None, "auto"):
        return str(request)
    wanted = os.environ.get(DEVICE_VARIABLE, "").strip() or "auto"
    if not re.fullmatch(DEVICE_PATTERN, wanted):
        raise UsageError(f"{DEVICE_VARIABLE}={wanted[:80]}: {explain_unknown_device(wanted)}")
    return wanted


def explain_unknown_device(name: str) -> str:
    """Return the message for a device that cannot be chosen."""
    if name.split(":")[0] in ("mps", "xpu"):
        return (
            f"lora_chat does not run on {name.split(':')[0]} devices, because its quantization and its fast path were "
            "never tried there. Fix: use cpu."
        )
    return "not a device. Fix: use auto, cpu, cuda, or cuda:N for a card by its number."


def _use_cpu(reason: str, *, is_note: bool = False) -> DeviceChoice:
    """Hide all cards, so that no library uses one."""
    if not _is_cuda_started():
        _set_visible(HIDE_ALL)
    return DeviceChoice(uses_cuda=False, reason=reason, notes=(f"Using the CPU: {reason}.",) if is_note else ())


def _choose_card(
    wanted: str, visible: list[VisibleCard], build: TorchBuild, driver: NvidiaDriver, cpu_option: str
) -> DeviceChoice:
    """Choose the card with most free memory, or the wanted one, and check that PyTorch can use it."""
    if _sharing.size > 1 and not (_sharing.may_see_own_card and len(visible) == 1):
        number = _find_own_card(wanted, visible, build)
    elif wanted.startswith("cuda:"):
        number = int(wanted.removeprefix("cuda:"))
        if number >= len(visible):
            names = ", ".join(f"cuda:{i} ({card_name(card)})" for i, card in enumerate(visible))
            raise RecipeError(f"There is no {wanted}. Visible: {names}. Fix: choose one of these with base.device.")
    else:
        number = _find_roomiest(visible, build)
    chosen = visible[number]
    check_build(build, driver, chosen, cpu_option)
    started = _is_cuda_started()
    if not started and len(visible) > 1:
        _set_visible(chosen.entry)
    elif started and number != 0 and wanted.startswith("cuda:"):
        raise RecipeError(
            f"CUDA has started in this process, so {wanted} cannot be chosen any more. "
            f"Fix: set {VISIBLE_VARIABLE}={number} before the program starts."
        )
    elif started and number != 0:
        number, chosen = 0, visible[0]
    check_cuda_starts(build, driver, chosen, cpu_option)
    if len(visible) == 1:
        return DeviceChoice(uses_cuda=True, reason="it is the only visible card", card=chosen)
    reason = "it has the most free memory of" if wanted in ("auto", "cuda") else "it was asked for among"
    if started and wanted in ("auto", "cuda"):
        reason = "CUDA had started with it among"
    note = _format_choice(number, chosen, len(visible))
    return DeviceChoice(uses_cuda=True, reason=f"{reason} {len(visible)} visible cards", notes=(note,), card=chosen)


def _find_own_card(wanted: str, visible: list[VisibleCard], build: TorchBuild) -> int:
    """Return the number of the card of this process, which is one of several.

    Each process makes the same list, so free memory does not count.
    """
    if wanted.startswith("cuda:"):
        raise RecipeError(
            f"base.device={wanted} is one card, and {_sharing.size} processes train on this machine. "
            f"Fix: base.device=cuda, with {VISIBLE_VARIABLE} for a choice of cards; or --processes 1."
        )
    suitable = [
        number
        for number, visible_card in enumerate(visible)
        if visible_card.card is None or build.has_kernels_for(visible_card.card.capability)
    ]
    if not suitable:
        return 0  # the next check explains it
    if len(suitable) < _sharing.size:
        raise make_too_few_cards_error(len(suitable))
    return suitable[_sharing.index]


def make_too_few_cards_error(count: int) -> RecipeError:
    """Return the error for more processes than cards."""
    cards = "1 card" if count == 1 else f"{count} cards"
    return RecipeError(
        f"{_sharing.size} processes, {cards}: each process of this machine needs its own card. "
        f"Fix: --processes {count} (or torchrun --nproc-per-node {count}), or --set base.device=cpu."
    )


def _find_roomiest(visible: list[VisibleCard], build: TorchBuild) -> int:
    """Return the number of the card with most free memory among those that PyTorch has kernels for."""

    def rank(number: int) -> tuple[bool, int, int]:
        card = visible[number].card
        return card is None or build.has_kernels_for(card.capability), card.free_bytes if card else 0, -number

    return max(range(len(visible)), key=rank)


def _choose_without_nvml(wanted: str, build: TorchBuild, report: DriverReport, cpu_option: str) -> DeviceChoice:
    """Choose where NVML has no answer: on AMD cards, and on machines without an NVIDIA driver."""
    import torch

    kind = "" if build.cuda is None and build.rocm is None else "cuda"
    if kind and _sharing.size > 1 and not _is_cuda_started():
        count = torch.cuda.device_count()
        if wanted.startswith("cuda:") or 0 < count < _sharing.size:
            raise make_too_few_cards_error(min(count, 1) if wanted.startswith("cuda:") else count)
        if count:
            _set_visible(_pick_entry(_sharing.index, build))
    elif kind and wanted.startswith("cuda:") and not _is_cuda_started():
        _set_visible(_pick_entry(int(wanted.removeprefix("cuda:")), build))
    if not torch.cuda.is_available():
        if report.is_broken and not build.rocm:
            raise make_broken_driver_error(report, cpu_option)
        if wanted != "auto":
            reason = "no AMD card" if build.rocm else f"no NVIDIA driver ({report.problem})"
            raise RecipeError(f"{wanted} is not available: {build.name} finds {reason}. Fix: base.device=auto or cpu.")
        return _explain_cpu(report)
    if build.rocm:
        note = "AMD cards (ROCm) are untested with lora_chat; training uses the stock path."
        return DeviceChoice(uses_cuda=True, reason="PyTorch is built for ROCm", notes=(note,))
    return DeviceChoice(uses_cuda=True, reason=f"PyTorch has it, although NVML does not answer ({report.problem})")


def _pick_entry(number: int, build: TorchBuild) -> str:
    """Return the entry of the environment variable for the visible card with a number."""
    value = os.environ.get("HIP_VISIBLE_DEVICES" if build.rocm else VISIBLE_VARIABLE) or os.environ.get(
        VISIBLE_VARIABLE
    )
    entries = [entry.strip() for entry in value.split(",")] if value else []
    if value and number >= len(entries):
        raise RecipeError(
            f"There is no cuda:{number}: {len(entries)} cards are visible. Fix: choose another base.device."
        )
    return entries[number] if entries else str(number)


def _explain_cpu(report: DriverReport) -> DeviceChoice:
    """Choose the CPU, with a note about a GPU that is not used, or about a driver that is not loaded."""
    import torch

    for name, is_available in (("mps", torch.backends.mps.is_available()), ("xpu", torch.xpu.is_available())):
        if is_available:
            return _use_cpu(f"the GPU of this machine ({name}) is of a kind that was never tried", is_note=True)
    reason = f"there is no NVIDIA driver ({report.problem})"
    is_installed = "not loaded" in report.problem.lower()
    return DeviceChoice(uses_cuda=False, reason=reason, notes=(f"Using the CPU: {reason}.",) if is_installed else ())


def _format_choice(number: int, chosen: VisibleCard, count: int) -> str:
    """Return the line about the choice among several cards."""
    card = chosen.card
    free = f", {card.free_bytes / _GIB:.1f} of {card.total_bytes / _GIB:.1f} GiB free" if card else ""
    return f"Using cuda:{number} ({card_name(chosen)}){free}; {count} cards are visible, and one process uses one."


def _is_cuda_started() -> bool:
    import torch

    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _set_visible(value: str | None) -> None:
    """Set or restore the visible cards of this process and its workers."""
    if value is None:
        os.environ.pop(VISIBLE_VARIABLE, None)
    else:
        os.environ[VISIBLE_VARIABLE] = value
