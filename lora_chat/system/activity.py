"""Signs that this process makes progress, so that processes that wait for it know that it does not hang."""

from pathlib import Path

_IO_FILE = Path("/proc/self/io")
_IO_FIELDS = ("rchar:", "wchar:", "read_bytes:")
_MIN_IO_BYTES = 1 << 18
"""Bytes of input and output that count as progress; reports about this process are much smaller."""

_notes = 0


def note_activity() -> None:
    """Count one piece of work, such as a file, a batch or a message. It is called at least every few minutes."""
    global _notes
    _notes += 1


class ActivityCounter:
    """Counter that grows while this process notes activity, or reads and writes files."""

    def __init__(self) -> None:
        self._io_bytes = _count_io_bytes()
        self._io_steps = 0

    def read(self) -> int:
        """Return the counter; call it about every second."""
        io_bytes = _count_io_bytes()
        if io_bytes - self._io_bytes >= _MIN_IO_BYTES:
            self._io_steps += 1
        self._io_bytes = io_bytes
        return _notes + self._io_steps


def _count_io_bytes() -> int:
    """Return the bytes that this process has read and written so far; 0 if the system does not count them."""
    try:
        words = _IO_FILE.read_text().split()
        return sum(int(words[words.index(field) + 1]) for field in _IO_FIELDS)
    except (OSError, ValueError, IndexError):
        return 0
