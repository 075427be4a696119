"""Progress of a download for people: a live bar in a terminal, a line now and then elsewhere."""

import logging
import time
from typing import Protocol

from lora_chat.system.console import format_bytes, shows_live_displays

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 15.0


class DownloadView(Protocol):
    """A display of one download."""

    def show(self, received: int) -> None:
        """Show the bytes that were received."""

    def close(self) -> None:
        """End the display."""


class _BarView:
    """A display as a live line on stderr."""

    def __init__(self, size: int) -> None:
        from lora_chat.system.bar import LiveBar

        self._size = size
        self._bar = LiveBar("connecting ...")

    def show(self, received: int) -> None:
        self._bar.update(f"{format_bytes(received)} of {format_bytes(self._size)}", received, self._size)

    def close(self) -> None:
        self._bar.close()


class _LineView:
    """A display as plain lines, for logs and pipes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._shown_at = time.monotonic()

    def show(self, received: int) -> None:
        if time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_LINES:
            self._shown_at = time.monotonic()
            logger.info(f"{format_bytes(received)} of {format_bytes(self._size)} received")

    def close(self) -> None:
        """Do nothing, because no line is left open."""


def open_download_view(size: int) -> DownloadView:
    """Return the display that fits stderr, for a download of `size` bytes."""
    return _BarView(size) if shows_live_displays() else _LineView(size)
