"""One call at a time, with everything that it changes in the process restored after it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lora_chat.commands.error_report import explain_error
from lora_chat.errors import ConsentError, InUseError
from lora_chat.in_process.library_state import quiet_libraries
from lora_chat.in_process.process_state import (
    check_process,
    protected_environment,
    restored_accelerate,
    restored_random_numbers,
)
from lora_chat.in_process.tensor_state import default_tensors
from lora_chat.system.signals import unchanged_handlers

_lock = threading.Lock()
_COMMANDS = {"fine_tune": "sft", "load": "chat", "evaluate": "eval", "inspect_data": "data"}
"""Names of the commands that do the same as functions with other names."""
_ARGUMENTS = {"--adopt": "adopt=True", "--accept-template": "accept_template=True"}
"""Arguments of the functions by the flags of the commands."""


@contextmanager
def api_call(name: str, *, catches_signals: bool = False) -> Iterator[None]:
    """Run a call of the Python API and restore the process. Raise InUseError while another call is running."""
    if not _lock.acquire(blocking=False):
        raise InUseError(
            f"Another call of lora_chat is running in this process, so {name} cannot start. "
            "Fix: wait for it, or use a second process."
        )
    try:
        check_process(name)
        with (
            unchanged_handlers(except_in_training=catches_signals),
            quiet_libraries(),  # before the environment is changed, because it reads the user's values
            protected_environment(),
            restored_random_numbers(),
            restored_accelerate(),
            default_tensors(),
            explained_errors(_COMMANDS.get(name, name)),
        ):
            yield
    finally:
        _lock.release()


@contextmanager
def protected_imports() -> Iterator[None]:
    """Import modules as a call does: libraries that they import print nothing and run no code from a hub."""
    if not _lock.acquire(blocking=False):
        yield  # a call is running, which has protected the process
        return
    try:
        with quiet_libraries(), protected_environment():
            yield
    finally:
        _lock.release()


@contextmanager
def explained_errors(command: str) -> Iterator[None]:
    """Raise errors that the user can fix as the command line prints them: lack of memory, a full disk, consent."""
    try:
        yield
    except ConsentError as error:
        raise ConsentError(error.message, _ARGUMENTS.get(error.flag, error.flag)) from error
    except BaseException as error:
        explained = explain_error(error, command)
        if explained is None or explained is error:
            raise
        raise explained from error
