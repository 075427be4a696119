"""The failure that ends all processes: written once by the first process that fails, read and printed once."""

import json
import signal
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lora_chat.errors import LoraChatError
from lora_chat.processes.rank import RESTART_VARIABLE, RUN_VARIABLE
from lora_chat.system.signals import SignalInterrupt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch._C._distributed_c10d import Store

FAILURE_KEY, PRINTED_KEY = "failure", "printed"
LOST_EXIT_CODE = 11
_MAX_CHARACTERS = 20_000
_SIGNAL_REASONS = {  # by name, because Windows lacks some of them
    "SIGKILL": "usually because the system ran out of memory (see `dmesg`)",
    "SIGSEGV": "a crash in native code",
    "SIGBUS": "a crash in native code, or a full /dev/shm",
    "SIGABRT": "a crash in native code",
    "SIGILL": "an instruction that this CPU does not have",
}
CONTINUE = "Fix: continue with --resume; the last checkpoint is whole."


class LostProcessError(LoraChatError):
    """A process of the group that ended without a message, or that does not answer."""

    exit_code = LOST_EXIT_CODE


class OtherProcessError(LoraChatError):
    """The failure of another process; its message has been printed, or is printed by this process."""

    def __init__(self, failure: "Failure") -> None:
        super().__init__(failure.text)
        self.failure = failure
        self.exit_code = failure.exit_code


@dataclass(frozen=True)
class Failure:
    """The reason why all processes end."""

    rank: int
    """Number of the process that failed, counted from 0."""
    exit_code: int
    text: str
    """Message to the user, as the process would print it."""
    label: str = "Error: "
    """Text before the message."""
    signal_number: int = 0
    """Signal of a user who stopped one process; 0 for an error."""
    is_named: bool = False
    """Whether the message already names the process."""

    def to_json(self) -> str:
        """Return the failure as JSON of bounded length."""
        return json.dumps({**asdict(self), "text": self.text[:_MAX_CHARACTERS]})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Failure":
        """Read a failure. Raise ValueError for anything else, because others may write to the store."""
        if len(text) > 8 * _MAX_CHARACTERS:
            raise ValueError("a failure of this length was not written by lora_chat")
        value = json.loads(text)
        kinds = {"rank": int, "exit_code": int, "text": str, "label": str, "signal_number": int}
        kinds["is_named"] = bool
        if not isinstance(value, dict) or {name: type(inner) for name, inner in value.items()} != kinds:
            raise ValueError("not a failure")
        if not 0 < value["exit_code"] < 256:
            raise ValueError("not an exit code of a failure")
        return cls(**value)

    def format(self, size: int, reader: int) -> str:
        """Return the message as the process `reader` prints it, with the process that failed if it is another one."""
        if self.rank == reader or self.is_named or self.signal_number:
            return f"{self.label}{self.text}"
        return f"{self.label}Process {self.rank + 1} of {size}: {self.text}"

    def to_error(self) -> BaseException:
        """Return the exception with which another process leaves its work."""
        return SignalInterrupt(self.signal_number) if self.signal_number else OtherProcessError(self)


def describe_lost(rank: int, size: int, text: str, exit_code: int = LOST_EXIT_CODE) -> Failure:
    """Return the failure of a process about which others report; the text continues `Process N of M`."""
    return Failure(rank, exit_code, f"Process {rank + 1} of {size} {text}", is_named=True)


def describe_end(rank: int, size: int, return_code: int) -> Failure:
    """Return the failure of a process that ended without a message, from the return code that its parent saw."""
    number = return_code - 128 if return_code > 128 else -return_code
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return Failure(rank, 128 + number, "Stopped before the run began.", label="", signal_number=number)
    if return_code >= 0:
        text = f"ended with exit code {return_code} before its work was done. {CONTINUE}"
        return describe_lost(rank, size, text, return_code or LOST_EXIT_CODE)
    known = number in signal.valid_signals()
    name = signal.Signals(number).name if known else f"signal {number}"
    reason = _SIGNAL_REASONS.get(name)
    return describe_lost(rank, size, f"was ended by {name}{f', {reason}' if reason else ''}. {CONTINUE}")


def describe_disappearance(rank: int, size: int) -> Failure:
    """Return the failure of a process that ended without a message and whose return code is unknown."""
    reason = "ended without a message: it crashed, or it was killed, usually because the system ran out of memory"
    return describe_lost(rank, size, f"{reason} (see `dmesg`). {CONTINUE}")


def key_prefix(environment: "Mapping[str, str]") -> str:
    """Return the prefix of all keys in the store; each restart by torchrun's agent has another one."""
    return f"lora_chat/{environment.get(RUN_VARIABLE, '')}/{environment.get(RESTART_VARIABLE, '0')}"


def clone_store(store: "Store") -> "Store":
    """Return a store with another connection, because a connection serves one thread at a time."""
    clone: Store = store.clone()  # type: ignore[attr-defined]  # the stubs of PyTorch lack it
    return clone


def record_failure(store: "Store", failure: Failure) -> Failure:
    """Write the failure unless another one is written already; return the first one."""
    return Failure.from_json(store.compare_set(FAILURE_KEY, "", failure.to_json()))
