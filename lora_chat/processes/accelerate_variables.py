"""The variables of `accelerate launch`: refused where they split a model, and removed, because the recipe decides.

`accelerate launch` gives every process the settings of its flags and of its config file as variables. Trainer and
accelerate read some of them long after the start: with a mixed precision that the recipe does not have they would round
otherwise, and a Dynamo backend would compile the model.
"""

import logging
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from lora_chat.errors import UsageError
from lora_chat.system.sanitize import sanitize_line

logger = logging.getLogger(__name__)

_PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
"""Beginnings of the names of all variables that accelerate 1.15 sets or reads as settings of training."""
_START = "Fix: start with `torchrun --nproc-per-node N -m lora_chat sft RECIPE`"


_MODES = {
    "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed",
    "ACCELERATE_USE_FSDP": "--use_fsdp",
    "ACCELERATE_USE_MEGATRON_LM": "--use_megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "--use_parallelism_config",
}
"""Variables of the flags with which accelerate splits a model among processes."""


@dataclass(frozen=True)
class _Setting:
    """A setting of accelerate that has no effect, the values that ask for nothing, and the part that decides."""

    flag: str
    neutral: tuple[str, ...]
    decides: str


_SETTINGS = {
    "ACCELERATE_MIXED_PRECISION": _Setting("--mixed_precision", ("no",), "quantization.dtype"),
    "ACCELERATE_DYNAMO_BACKEND": _Setting("--dynamo_backend", ("no",), "training.fast_path"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": _Setting(
        "--gradient_accumulation_steps", ("1",), "training.effective_batch_size"
    ),
    "ACCELERATE_GRADIENT_CLIPPING": _Setting("--gradient_clipping", (), "training.max_grad_norm"),
    "ACCELERATE_USE_CPU": _Setting("--cpu", ("false", "0", "no", "off"), "base.device"),
    "ACCELERATE_TORCH_DEVICE": _Setting("the device", (), "base.device"),
}
_TRUE = ("1", "true", "yes", "on", "y", "t")
_MAX_SHOWN_CHARACTERS = 60


def check_accelerate_modes(environment: Mapping[str, str]) -> None:
    """Raise UsageError if accelerate was asked to split the model."""
    for name, flag in _MODES.items():
        if _is_true(environment, name):
            shown = sanitize_line(environment[name].strip(), _MAX_SHOWN_CHARACTERS)
            raise UsageError(
                f"lora_chat does not use accelerate's {flag} ({name}={shown}), because the recipe decides how a "
                f"base is divided. {_START}, or with `accelerate launch --multi_gpu`; a base that does not fit a card "
                "is divided with --set base.shard=true."
            )


def remove_accelerate_variables(environment: MutableMapping[str, str], *, is_first: bool) -> None:
    """Remove accelerate's settings. The first process logs those that ask for something."""
    for name, setting in _SETTINGS.items():
        value = environment.get(name, "").strip()
        if is_first and value and value.lower() not in setting.neutral:
            shown = sanitize_line(value, _MAX_SHOWN_CHARACTERS)
            logger.info(f"accelerate's {setting.flag} ({name}={shown}) has no effect; {setting.decides} decides.")
    for name in [name for name in environment if name.startswith(_PREFIXES)]:
        environment.pop(name)


def check_single_process(environment: Mapping[str, str]) -> None:
    """Report that accelerate has started a single process on a CPU although several were asked for.

    With `--cpu` and without `--mpirun_hostfile` accelerate only sets the address at which the processes would meet.
    Raise UsageError on several machines, because each of them would train a run of all data.
    """
    address = environment.get("MASTER_ADDR", "").strip()
    if not address or not _is_true(environment, "ACCELERATE_USE_CPU"):
        return
    problem = "accelerate launch starts one process on a CPU, whatever --num_processes says"
    if address not in ("127.0.0.1", "localhost", "::1"):
        shown = sanitize_line(address, _MAX_SHOWN_CHARACTERS)
        raise UsageError(
            f"{problem}, so each machine would train a run of all data (MASTER_ADDR={shown}). {_START} and torchrun's "
            "--nnodes and --rdzv-endpoint on each machine."
        )
    logger.info(
        f"{problem}; this one trains on all data. For several: torchrun --nproc-per-node N -m lora_chat sft RECIPE"
    )


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").strip().lower() in _TRUE
