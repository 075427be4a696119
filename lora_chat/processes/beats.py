"""The beats of a process, and the time limits of a watch."""

import time
from dataclasses import dataclass

WORKS, WAITS, LEFT = "works", "waits", "left"


@dataclass(frozen=True)
class WatchLimits:
    """Times in seconds."""

    beat: float = 0.5
    """Time between two beats."""
    silence: float = 60.0
    """Longest time without a beat of a process that lives."""
    stall: float = 1800.0
    """Longest time without progress of a process for which others wait."""
    interrupt: float = 3.0
    """Time until a main thread that has not seen a failure is interrupted."""
    grace: float = 15.0
    """Time until a main thread that does not leave is ended with its process."""
    root_cause: float = 10.0
    """Longest wait for the cause of a broken connection."""

    @classmethod
    def from_minutes(cls, minutes: float) -> "WatchLimits":
        """Return the limits for a longest time without progress, in minutes."""
        return cls(silence=min(cls.silence, 60 * minutes), stall=60 * minutes)


class Beats:
    """The beats of one process as this process has seen them."""

    def __init__(self) -> None:
        self.text = ""
        self.seen = time.monotonic()
        """Time of the last new beat."""
        self.progress: tuple[str, str] = ("", WORKS)
        self.moved = time.monotonic()
        """Time of the last progress."""

    def update(self, text: str) -> None:
        """Add the newest beat."""
        now = time.monotonic()
        if text != self.text:
            self.text, self.seen = text, now
        parts = text.split()
        progress = (parts[1], parts[2]) if len(parts) == 3 else ("", WORKS)
        if progress != self.progress:
            self.progress, self.moved = progress, now

    def forgive(self) -> None:
        """Count all times from now on, because this process was stopped for a while."""
        self.seen = self.moved = time.monotonic()

    @property
    def state(self) -> str:
        return self.progress[1]
