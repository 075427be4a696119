"""Start processes that use the card in turns, and read their messages."""

import json
import queue
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from child_command import start_program

_END: dict[str, Any] = {}
"""Message that marks the end of a process."""


class TurnProcess:
    """One process; see turn_gate.py for its side."""

    def __init__(self, name: str, arguments: list[str], *, limits: Sequence[str] = ()) -> None:
        self.name = name
        self.error = ""
        """Reason why the process ended early."""
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._process = start_program(arguments, limits=limits)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(json.JSONDecodeError):
                self._messages.put(json.loads(line))
        self._messages.put(_END)

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message, or None if the process has ended or none comes in time; then it is stopped."""
        try:
            message = self._messages.get(timeout=max(0.1, seconds))
        except queue.Empty:
            self.stop(f"no answer within {seconds:.0f} s")
            return None
        if message is _END or "error" in message:
            self.stop(message.get("error") or f"ended with exit code {self._process.wait()}")
            return None
        return message

    def go(self) -> None:
        """Let the process go on."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def stop(self, reason: str = "") -> None:
        """End the process."""
        self.error = self.error or reason
        with suppress(ProcessLookupError):
            self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
