"""Libraries that read settings from the working directory are imported from outside of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def outside_working_directory() -> Iterator[None]:
    """Let the process work in the root folder during the block."""
    here = None
    with suppress(OSError):  # the folder may be gone
        here = os.getcwd()  # noqa: PTH109
    os.chdir(os.sep)
    try:
        yield
    finally:
        if here is not None:
            with suppress(OSError):
                os.chdir(here)
