"""Checks that PyTorch can use a card, each with the fix in its message."""

from lora_chat.errors import UnavailableError
from lora_chat.system.nvidia_driver import DriverReport, NvidiaDriver
from lora_chat.system.torch_build import TorchBuild, suggest_wheel
from lora_chat.system.visible_cards import VisibleCard


def check_build(build: TorchBuild, driver: NvidiaDriver, chosen: VisibleCard, cpu_option: str) -> None:
    """Raise UnavailableError if the build has no CUDA, or no kernels for the card."""
    capability = chosen.card.capability if chosen.card else (0, 0)
    if build.cuda is None and not _is_cuda_available():
        raise UnavailableError(
            f"{build.name} cannot use the {card_name(chosen)}, because it is a build for CPUs, as those for Windows "
            f"on PyPI are. The driver is {driver.version}.\n" + _advise(driver, capability, build, cpu_option)
        )
    if build.runs_on_driver(driver) and not build.has_kernels_for(capability):
        raise UnavailableError(
            f"{build.name} has no kernels for the {card_name(chosen)}, which has compute capability "
            f"{capability[0]}.{capability[1]}: the build has {', '.join(build.architectures)}.\n"
            + _advise(driver, capability, build, cpu_option)
        )


def check_cuda_starts(build: TorchBuild, driver: NvidiaDriver, chosen: VisibleCard, cpu_option: str) -> None:
    """Raise UnavailableError if PyTorch cannot start CUDA, most likely because the driver is too old."""
    if _is_cuda_available():
        return
    capability = chosen.card.capability if chosen.card else (0, 0)
    if not build.runs_on_driver(driver):
        raise UnavailableError(
            f"{build.name} cannot use the {card_name(chosen)}: it needs driver {build.min_driver} or newer, and the "
            f"installed driver is {driver.version} (CUDA {driver.cuda[0]}.{driver.cuda[1]}).\n"
            + _advise(driver, capability, build, cpu_option)
        )
    raise UnavailableError(
        f"{build.name} cannot start CUDA on the {card_name(chosen)} with driver {driver.version}.\n"
        "Fix: run `nvidia-smi`; after an update of the driver, restart the machine.\n"
        f"To use the CPU instead: {cpu_option}"
    )


def make_broken_driver_error(report: DriverReport, cpu_option: str) -> UnavailableError:
    """Return the error for a driver that is installed and does not answer."""
    return UnavailableError(
        f"The NVIDIA driver does not answer: {report.problem}.\n"
        "Fix: run `nvidia-smi`; after an update of the driver, restart the machine.\n"
        f"To use the CPU instead: {cpu_option}"
    )


def _advise(driver: NvidiaDriver, capability: tuple[int, int], build: TorchBuild, cpu_option: str) -> str:
    """Return the fixes: a newer driver or another build of PyTorch, if they help, or the CPU."""
    fixes = []
    if not build.runs_on_driver(driver) and build.has_kernels_for(capability):
        fixes.append(f"update the driver to {build.min_driver} or newer")
    if wheel := suggest_wheel(driver, capability, build):
        fixes.append(f"install another build: {wheel}")
    fix = f"Fix: {', or '.join(fixes)}" if fixes else "No build of PyTorch 2.10 or newer is known to run on this card."
    return f"{fix}\nTo use the CPU instead: {cpu_option}"


def card_name(visible: VisibleCard) -> str:
    """Return the name of a card for messages."""
    return visible.card.name if visible.card else f"card {visible.entry}"


def _is_cuda_available() -> bool:
    import torch

    return bool(torch.cuda.is_available())
