"""A real `lora-chat serve` process with its figures: memory, metrics, messages and exit code."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import psutil

START_SECONDS = 600
STOP_SECONDS = 60


class ServerProcess:
    """A server on a free port of this machine, as a context."""

    def __init__(self, words: Sequence[str]) -> None:
        command = [str(Path(sys.executable).parent / "lora-chat"), "serve", *words, "--port", "0", "--json"]
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._messages)  # noqa: S603
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"The server did not start:\n{self.messages()}")
        ready = json.loads(line)
        self.url: str = ready["url"]
        self.models: list[str] = ready["models"]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])
        self.exit_code: int | None = None

    def __enter__(self) -> ServerProcess:
        """Return the server, which answers already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        if self.exit_code is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.exit_code = self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.exit_code = self.process.wait()
        return self.exit_code

    def resident_bytes(self) -> int:
        """Return the resident memory of the process."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def messages(self) -> str:
        """Return everything that the server printed on stderr."""
        self._messages.seek(0)
        return self._messages.read().decode("utf-8", "replace")

    def metrics(self) -> dict[str, float]:
        """Return all metrics by name with labels."""
        with urllib.request.urlopen(f"{self.url}metrics", timeout=30) as answer:  # noqa: S310  # its own address
            lines = answer.read().decode().splitlines()
        pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in pairs}

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        pattern = re.compile(re.escape(name) + r"(\{.*\})?")
        return sum(value for key, value in self.metrics().items() if pattern.fullmatch(key))

    def ask(self, body: dict[str, object], route: str = "v1/chat/completions") -> dict[str, Any]:
        """Return the answer to one request."""
        request = urllib.request.Request(  # noqa: S310  # its own address
            self.url + route, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
            return cast("dict[str, Any]", json.load(answer))
