"""Run parts of the check as processes with time limits, and judge their records."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from check_parts import Part
from check_records import DEADLINE_VARIABLE, RECORDS_VARIABLE, read_records
from child_command import card_command

_GRACE_SECONDS = 5.0
"""Time of a part to end by itself after its deadline, in seconds."""
_MAX_REASON_CHARACTERS = 400


@dataclass
class PartResult:
    """The outcome of one part."""

    name: str
    title: str
    status: str
    """`ok`, `failed` or `skipped`."""
    reason: str
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


class RunningPart:
    """A part that has been started."""

    def __init__(self, part: Part, interpreter: str, work: Path, size: str, seconds: float) -> None:
        self.part = part
        self._records = work / f"{part.name}.jsonl"
        self._log = work / f"{part.name}.log"
        self._started = time.monotonic()
        self._seconds = seconds
        environment = os.environ | {
            RECORDS_VARIABLE: str(self._records),
            DEADLINE_VARIABLE: str(time.time() + seconds),
        }
        program = Path(__file__).parent / part.program
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a program of this folder
                card_command([str(program), "--size", size, "--work", str(work)], interpreter),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        """Return whether the process has ended, or has been stopped because its time is over."""
        if self._process.poll() is not None:
            return True
        if time.monotonic() - self._started > self._seconds + _GRACE_SECONDS:
            self.stop()
            return True
        return False

    def stop(self) -> None:
        """Kill the process and every process that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def make_result(self) -> PartResult:
        """Return the result of an ended part."""
        self.stop()  # processes that the part left
        seconds = time.monotonic() - self._started
        records = read_records(self._records)
        figures = {record["figures"]: record["values"] for record in records if "figures" in record}
        checks = [record for record in records if "check" in record]
        skipped = {record["skipped"]: record["reason"] for record in records if "skipped" in record}
        result = PartResult(self.part.name, self.part.title, "ok", "", seconds, figures, checks, skipped)
        failures = [f"{c['check']}: {c['detail']}".rstrip(": ") for c in checks if not c["passed"]]
        if self._process.returncode == -signal.SIGKILL:
            failures.append(f"stopped after {seconds:.0f} s, its time limit")
        elif self._process.returncode:
            failures.append(f"exit code {self._process.returncode}: {self._last_line()}")
        if failures:
            result.status, result.reason = "failed", "; ".join(failures)
        elif not checks:
            result.status, result.reason = "skipped", "; ".join(skipped.values()) or "nothing was checked"
        elif skipped:
            result.reason = "skipped: " + "; ".join(f"{name} ({reason})" for name, reason in skipped.items())
        result.reason = " ".join(result.reason.split())[:_MAX_REASON_CHARACTERS]
        return result

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"


def run_stage(parts: list[Part], interpreter: str, work: Path, size: str, seconds_left: float) -> list[PartResult]:
    """Run the parts of one stage at the same time and return their results in their order."""
    running = [
        RunningPart(part, interpreter, work, size, min(scale_seconds(part, size), seconds_left)) for part in parts
    ]
    try:
        while not all([part.has_ended() for part in running]):  # noqa: C419 - each part is asked, to stop late ones
            time.sleep(0.2)
    finally:
        for part in running:
            part.stop()
    return [part.make_result() for part in running]


def scale_seconds(part: Part, size: str) -> float:
    """Return the time limit of a part. A rehearsal with tiny models has more time, because its processor is slow."""
    return part.seconds if size == "full" else 4.0 * part.seconds
