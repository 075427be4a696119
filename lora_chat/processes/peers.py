"""The processes of a group as the system of this machine sees them."""

import json
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_MAX_CHARACTERS = 2000
_FOLDER_PREFIX = "lora-chat-process-"
"""Beginning of the name of a process's temporary folder; its number follows."""
_DEAD_STATES = "ZXx"
"""States of /proc/PID/stat of a process that has ended."""


@dataclass(frozen=True)
class Peer:
    """A process of the group and where it runs."""

    machine: str
    """Identifier of the running system and of its namespace of process numbers."""
    pid: int
    started: str
    """Start time in clock ticks, because the system uses a number of an ended process again; empty if unknown."""
    card: str = ""
    """Identifier of its card; empty for the CPU, or if it is unknown."""

    def to_json(self) -> str:
        """Return the description as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Peer":
        """Read a description. Raise ValueError for anything else, because others may write to the store."""
        value = json.loads(text) if len(text) <= _MAX_CHARACTERS else None
        kinds = {"machine": str, "pid": int, "started": str, "card": str}
        if not isinstance(value, dict) or {name: type(inner) for name, inner in value.items()} != kinds:
            raise ValueError("not the description of a process")
        return cls(**value)

    def has_ended(self, here: "Peer") -> bool:
        """Return whether the process has ended; False for a process of another machine than `here`."""
        if self.machine != here.machine:
            return False
        if self.started:
            state = _read_state(self.pid)
            return state is None or state[0] in _DEAD_STATES or state[1] != self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


def describe_this_process(card: str = "") -> Peer:
    """Return the description of this process."""
    state = _read_state(os.getpid())
    return Peer(_identify_machine(), os.getpid(), state[1] if state else "", card)


def folder_prefix() -> str:
    """Return the beginning of the name of this process's temporary folder."""
    return f"{_FOLDER_PREFIX}{os.getpid()}-"


def remove_leftovers(pid: int) -> None:
    """Remove the temporary folder of a process that was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}{pid}-*"):
        with suppress(OSError):
            if folder.lstat().st_uid == os.getuid() and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)


def _identify_machine() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text().strip()]
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _read_state(pid: int) -> tuple[str, str] | None:
    """Return state and start time of a process, or None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None
