"""One call at a time, with everything that it changes in the process restored after it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lora_chat.errors import InUseError
from lora_chat.in_process.library_state import quiet_libraries
from lora_chat.in_process.process_state import (
    protected_environment,
    restored_accelerate,
    restored_random_numbers,
)
from lora_chat.system.signals import unchanged_handlers

_lock = threading.Lock()


@contextmanager
def api_call(name: str) -> Iterator[None]:
    """Run a call of the Python API. Raise InUseError if another call is running in this process."""
    if not _lock.acquire(blocking=False):
        raise InUseError(
            f"Another call of lora_chat is running in this process, so {name} cannot start. "
            "Fix: wait for it, or use a second process."
        )
    try:
        with (
            unchanged_handlers(),
            protected_environment(name),
            restored_random_numbers(),
            restored_accelerate(),
            quiet_libraries(),
        ):
            yield
    finally:
        _lock.release()
