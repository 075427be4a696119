"""The check of what several processes could do on this machine."""

import os

from lora_chat.errors import LoraChatError, first_line
from lora_chat.pipeline.doctor_machine import CheckResult, Machine
from lora_chat.processes.rank import read_rank
from lora_chat.system.visible_cards import VisibleCard


def check_processes(machine: Machine) -> CheckResult:
    """Say how many processes can train here, and whether this environment makes `sft` one of several."""
    try:
        rank = read_rank(dict(os.environ))
    except LoraChatError as error:
        return CheckResult("problem", first_line(error), error)
    if rank.size > 1:
        return CheckResult(
            "note",
            f"the environment makes sft {rank}, which waits for the others. Fix for a single one: unset WORLD_SIZE.",
        )
    if machine.hardware is None:
        return CheckResult("ok", "not counted, because there is no device")
    if machine.hardware.device == "cpu":
        threads = machine.hardware.threads
        return CheckResult(
            "ok",
            f"one uses the CPU's {threads} threads; --processes N gives each a part of them and of the memory",
        )
    return _describe_cards(machine)


def _describe_cards(machine: Machine) -> CheckResult:
    """Say how many processes the visible cards can train with."""
    usable = [
        each
        for each in machine.visible
        if each.card is None or (machine.build is not None and machine.build.has_kernels_for(each.card.capability))
    ]
    if len(usable) < 2:
        return CheckResult("ok", "1, because each process needs its own card")
    text = f"up to {len(usable)}: lora-chat sft RECIPE --processes {len(usable)} uses one card for each"
    problems = [*_note_kinds(usable), *_note_nccl()]
    return CheckResult("note" if problems else "ok", "\n".join([text, *problems]))


def _note_kinds(cards: list[VisibleCard]) -> list[str]:
    """Return a note about cards of different kinds."""
    kinds = sorted({each.card.name for each in cards if each.card is not None})
    if len(kinds) < 2:
        return []
    names = ", ".join(kinds)
    return [f"The cards differ ({names}): every step waits for the slowest, and the plan is made for the first."]


def _note_nccl() -> list[str]:
    """Return a note if PyTorch cannot connect cards."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_nccl_available():
        return []
    return ["This build of PyTorch has no NCCL, without which several cards cannot train together."]
