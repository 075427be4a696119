"""A report about this machine: what `sft` will use, and the reason for everything that is off.

Nothing is contacted or downloaded. Each line is one check of a table; a check gets the facts in `Machine`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lora_chat.config.plan import DTYPE_TITLES, make_plan
from lora_chat.config.recipe import Recipe
from lora_chat.errors import LoraChatError
from lora_chat.pipeline.doctor_libraries import (
    check_bitsandbytes,
    check_compiler,
    check_device,
    check_fast_path,
    check_float32,
    check_torch,
)
from lora_chat.pipeline.doctor_machine import (
    CheckResult,
    Machine,
    check_base,
    check_cards,
    check_disk,
    check_driver,
    check_extras,
    check_hub,
    check_libraries,
    check_memory,
    check_settings,
    check_system,
    inspect_machine,
)
from lora_chat.pipeline.doctor_processes import check_processes


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    run: Callable[[Machine], CheckResult]


CHECKS = (
    Check("System", check_system),
    Check("Libraries", check_libraries),
    Check("Driver", check_driver),
    Check("PyTorch", check_torch),
    Check("Cards", check_cards),
    Check("Device", check_device),
    Check("bitsandbytes", check_bitsandbytes),
    Check("Fast path", check_fast_path),
    Check("fp32 products", check_float32),
    Check("Compiler", check_compiler),
    Check("Processes", check_processes),
    Check("Memory", check_memory),
    Check("Disk", check_disk),
    Check("Base", check_base),
    Check("Hub", check_hub),
    Check("Extras", check_extras),
    Check("Settings", check_settings),
)
"""Checks in the order of the report; the first one with an error decides the verdict."""
_NAME_WIDTH = 14


@dataclass(frozen=True)
class Diagnosis:
    """The report."""

    results: dict[str, CheckResult]
    """Results by the name of the check."""
    verdict: str
    device: dict[str, object] | None
    """The device that `sft` would use, and how; None if it cannot run."""
    error: LoraChatError | None
    """Reason why `sft` cannot run."""

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON."""
        checks = [{"name": name, "state": it.state, "text": it.text} for name, it in self.results.items()]
        code = self.error.exit_code if self.error else 0
        return {"checks": checks, "device": self.device, "verdict": self.verdict, "exit_code": code}

    def as_text(self) -> str:
        """Return the report as lines."""
        lines = []
        for name, result in self.results.items():
            mark = {"ok": " ", "note": "-", "problem": "!"}[result.state]
            first, *others = result.text.splitlines()
            lines.append(f"{mark} {name:<{_NAME_WIDTH}}{first}")
            lines += [" " * (_NAME_WIDTH + 2) + line for line in others]
        return "\n".join([*lines, self.verdict])


def diagnose() -> Diagnosis:
    """Run all checks, and say what `sft` will do with a recipe that leaves the device open."""
    machine = inspect_machine()
    results = {check.name: check.run(machine) for check in CHECKS}
    error = next((result.error for result in results.values() if result.error), None)
    if error is not None or machine.hardware is None:
        return Diagnosis(results, "sft cannot run on this machine as it is.", None, error)
    hardware = machine.hardware
    plan = make_plan(Recipe.model_validate({"data": {"train": "dialogues.jsonl"}}), hardware)
    is_fast = plan.training.fast_path and results["Fast path"].state == "ok"
    name = f"the CPU ({hardware.name})" if hardware.device == "cpu" else hardware.name
    device: dict[str, object] = {
        "kind": hardware.device,
        "name": hardware.name,
        "capability": list(hardware.capability) if hardware.capability else None,
        "quantization": plan.precision.mode,
        "dtype": plan.precision.dtype,
        "fast_path": is_fast,
    }
    precision = f"{plan.precision.mode.replace('bit', '-bit')}, {DTYPE_TITLES[plan.precision.dtype]}"
    verdict = f"sft will use {name}: {precision}, {'fast' if is_fast else 'stock'} path."
    return Diagnosis(results, verdict, device, None)
