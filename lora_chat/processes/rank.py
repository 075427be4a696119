"""The number of this process among the processes that train together.

torchrun, accelerate launch and MPI give each process its number in environment variables. They are read once, and
removed after the processes are connected, because accelerate, Trainer and TRL would start their own communication.
"""

import re
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import lora_chat.system.parent  # noqa: F401 - notes the parent as early as possible
from lora_chat.errors import UsageError
from lora_chat.processes.accelerate_variables import (
    check_accelerate_modes,
    check_single_process,
    remove_accelerate_variables,
)
from lora_chat.system.sanitize import sanitize_line


@dataclass(frozen=True)
class Rank:
    """The number of a process among all processes, and among those of its machine; both count from 0."""

    index: int = 0
    size: int = 1
    """Processes of the group."""
    local_index: int = 0
    local_size: int = 1
    """Processes of the group on this machine."""
    is_from_agent: bool = False
    """Whether torchrun's agent started this process, so that all processes of a machine see the same cards."""

    def __str__(self) -> str:
        return f"process {self.index + 1} of {self.size}"


@dataclass(frozen=True)
class _Variables:
    """The names of the variables with which a program numbers its processes."""

    rank: str
    size: str
    local_rank: str
    local_size: str

    @property
    def names(self) -> tuple[str, ...]:
        return self.rank, self.size, self.local_rank, self.local_size


_TORCH = _Variables("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MPI = (
    _Variables(
        *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    _Variables("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Variables(
        *("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"), *("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE")
    ),
)
_ADDRESS, _PORT = "MASTER_ADDR", "MASTER_PORT"
LAUNCHER_VARIABLE = "LORA_CHAT_LAUNCHER_PID"
"""Environment variable with the number of the process that started this one with `--processes`."""
RUN_VARIABLE, RESTART_VARIABLE = "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"
_OTHER_VARIABLES = (
    *(_ADDRESS, _PORT, "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME"),
    *(RUN_VARIABLE, RESTART_VARIABLE, "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE"),
    *("TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_SIGNALS_TO_HANDLE", "FORK_LAUNCHED"),
)
_NUMBER = re.compile(r"[0-9]{1,6}")
_HOST = re.compile(r"[A-Za-z0-9_.:%-]{1,253}")
_MAX_SHOWN_CHARACTERS = 60
_START = "Fix: start with `torchrun --nproc-per-node N -m lora_chat sft RECIPE`"


def read_rank(environment: MutableMapping[str, str]) -> Rank:
    """Return the number of this process. Raise UsageError for variables with which training cannot work.

    The variables of a group of one process are removed at once. With several processes, `remove_group_variables` does
    it after they are connected.
    """
    check_accelerate_modes(environment)
    torch_rank = _read_numbers(environment, _TORCH)
    mpi_ranks = [rank for rank in (_read_numbers(environment, names) for names in _MPI) if rank]
    rank = torch_rank or max(mpi_ranks, key=lambda rank: rank.size, default=None) or Rank()
    if rank.size == 1 and any(other.size > 1 for other in mpi_ranks):
        shown = ", ".join(_show(environment, names.size) for names in _MPI if environment.get(names.size, "").strip())
        raise UsageError(
            f"MPI started several processes, and torchrun started one in each ({shown}), so each of them would train a "
            f"run of all data. {_START}, without mpirun or srun around it, or with one torchrun for each machine."
        )
    if rank.size == 1:
        if torch_rank is None and not mpi_ranks:
            check_single_process(environment)
        remove_group_variables(environment)
        return Rank()
    _check_address(environment, is_mpi=torch_rank is None)
    return rank


def refuse_windows() -> None:
    """Raise UsageError on Windows, whose processes cannot end each other as torchrun and the watch need it."""
    if sys.platform == "win32":
        raise UsageError("Several processes cannot train together on Windows. Fix: use Linux, macOS or WSL.")


def is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Return whether torchrun or accelerate launch started this process as one of several."""
    is_worker = bool(_NUMBER.fullmatch(environment.get(_TORCH.local_rank, "").strip()))
    return is_worker and _number(environment, _TORCH.size) > 1


def is_later_process(environment: Mapping[str, str]) -> bool:
    """Return whether torchrun or accelerate launch started this process, and it is not the first of several."""
    return is_one_of_several(environment) and _number(environment, _TORCH.rank) > 0


def refuse_several_processes(environment: Mapping[str, str], command: str) -> None:
    """Raise UsageError if torchrun or accelerate launch started several processes of a command that uses one.

    Without LOCAL_RANK it is one process on a machine whose variables describe a later start of torchrun.
    """
    if is_one_of_several(environment):
        raise UsageError(
            f"lora-chat {command} uses one process, and this is one of several ({_show(environment, _TORCH.size)}). "
            f"Fix: start `lora-chat {command}` without torchrun and accelerate launch."
        )


def remove_group_variables(environment: MutableMapping[str, str]) -> None:
    """Remove the variables of the group, and accelerate's settings, because the recipe decides."""
    remove_accelerate_variables(environment, is_first=environment.get(_TORCH.rank, "0").strip() in ("", "0"))
    for variables in (_TORCH, *_MPI):
        for name in variables.names:
            environment.pop(name, None)
    for name in _OTHER_VARIABLES:
        environment.pop(name, None)


def _read_numbers(environment: Mapping[str, str], names: _Variables) -> Rank | None:
    """Return the numbers of one kind of variables, or None if none is set. Raise UsageError if they do not agree."""
    values = {name: environment.get(name, "").strip() for name in names.names}
    values = {name: value for name, value in values.items() if value not in ("", "-1")}
    if not values or set(values.values()) == {"0"} or values == {names.size: "1"}:
        return Rank() if values else None  # some programs set a rank of 0 for a single process
    wrong = [name for name in values if not _NUMBER.fullmatch(values[name])]
    if wrong:
        raise UsageError(f"{_show(environment, wrong[0])} is not a number. Fix: unset {wrong[0]}.")
    for name in (names.rank, names.size):
        if name not in values:
            set_names = " and ".join(_show(environment, other) for other in values)
            raise UsageError(
                f"This is one of several processes, but {name} is not set, only {set_names}. "
                f"{_START}, or start `lora-chat sft` without {' and '.join(values)}."
            )
    missing_local = [name for name in (names.local_rank, names.local_size) if name not in values]
    local = int(values.get(names.local_rank, 0)), int(values.get(names.local_size, 1))
    if len(missing_local) == 1 and local[0] > 0:
        raise UsageError(f"{missing_local[0]} is not set, although {_show(environment, names.local_rank)}. {_START}.")
    rank = Rank(int(values[names.rank]), int(values[names.size]), *local, is_from_agent=RUN_VARIABLE in environment)
    is_inside = rank.index < rank.size and rank.local_index < rank.local_size <= rank.size
    if not is_inside or rank.local_index > rank.index:
        shown = ", ".join(_show(environment, name) for name in values)
        raise UsageError(f"The numbers of this process contradict each other ({shown}). {_START}.")
    return rank


def _check_address(environment: Mapping[str, str], *, is_mpi: bool) -> None:
    """Raise UsageError if the address of the first process is missing or malformed."""
    address, port = environment.get(_ADDRESS, "").strip(), environment.get(_PORT, "").strip()
    if not address or not port:
        missing = _PORT if address else _ADDRESS
        starter = " MPI does not set it." if is_mpi else ""
        raise UsageError(
            f"{missing} is not set, so the processes cannot find each other.{starter} {_START}, or set "
            f"{_ADDRESS} to the name of the machine of the first process and {_PORT} to a free port."
        )
    if not _HOST.fullmatch(address):
        raise UsageError(f"{_show(environment, _ADDRESS)} is not the name or address of a machine. {_START}.")
    if not (_NUMBER.fullmatch(port) and 0 < int(port) < 2**16):
        raise UsageError(f"{_show(environment, _PORT)} is not a port between 1 and 65535. {_START}.")


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "").strip()
    return int(value) if _NUMBER.fullmatch(value) else 0


def _show(environment: Mapping[str, str], name: str) -> str:
    """Return a variable as NAME=VALUE, safe to print."""
    return f"{name}={sanitize_line(environment.get(name, '').strip(), _MAX_SHOWN_CHARACTERS)}"
