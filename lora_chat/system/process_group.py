"""Refusal of a start as one of several processes, as torchrun, accelerate and MPI start them."""

from collections.abc import MutableMapping

from lora_chat.errors import UsageError

_SIZE_VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK", "MPI_LOCALRANKID"),
    *("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
)
_GROUP_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
_DEVICE_VARIABLES = ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE")
"""Variables with which accelerate puts the data on another device than the model."""
_ACCELERATE_MODES = tuple(
    f"ACCELERATE_USE_{mode}" for mode in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")
)
"""Variables of `accelerate launch` that split a model among processes."""


def require_single_process(environment: MutableMapping[str, str]) -> None:
    """Raise UsageError if this is one of several processes that would train together.

    Each of them would write a run of its own, trained on a part of the data. The variables of a group of one process
    are removed, because Trainer would set up communication between processes for them, and accelerate's choice of a
    device, because `base.device` is the choice.
    """
    for name in (*_SIZE_VARIABLES, *_RANK_VARIABLES):
        value = environment.get(name, "").strip()
        largest_number = 1 if name in _SIZE_VARIABLES else 0
        if value.lstrip("-").isdigit() and int(value) > largest_number:
            raise UsageError(
                f"lora_chat trains in a single process, and this is one of several ({name}={value}). "
                "Fix: start `lora-chat sft` without torchrun, accelerate launch or mpirun; it uses one card."
            )
    for name in _ACCELERATE_MODES:
        if environment.get(name, "").lower() in ("1", "true", "yes", "on"):
            raise UsageError(
                f"lora_chat does not split a model ({name}={environment[name]}). "
                "Fix: start `lora-chat sft` without accelerate launch."
            )
    for name in (*_SIZE_VARIABLES, *_RANK_VARIABLES, *_GROUP_VARIABLES, *_DEVICE_VARIABLES):
        environment.pop(name, None)
