"""Processes that start without imports, because they are forks of a server that has the libraries.

The server is Python's `forkserver`. In `make test` it is a fork of the process of the tests, made before the first
test, which has imported all libraries. Otherwise it starts with the first process that is asked for, and imports them.
"""

import gc
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

PRELOAD = ["lora_chat.training.sft", "lora_chat.training.trainer", "lora_chat.pipeline.fine_tune", "peft"]
"""Modules that the server imports."""


def make_process(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Return a process, not started yet, that calls a function of a module in the environment of this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context.Process(target=_call, args=(dict(os.environ), function, arguments))


def fork_server_from_here() -> None:
    """Make the server a fork of this process, if it has the libraries and no threads that would not survive a fork."""
    if sys.platform != "linux" or os.environ.get("OMP_NUM_THREADS") != "1" or not set(PRELOAD) <= sys.modules.keys():
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    multiprocessing.resource_tracker.ensure_running()  # an interpreter, as always
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing.forkserver.util, "spawnv_passfds", _fork)
        multiprocessing.forkserver.ensure_running()


def _fork(_interpreter: str, words: list[str], passed_files: list[int]) -> int:
    """Run `python -c CODE`, the command that starts the server, in a fork of this process. Return its id."""
    if child := os.fork():
        return child
    # The server ends when all other processes have closed a pipe, of which it would have an end. Files are not closed,
    # because an object of the tests that closes its file later would close another one that has got the number.
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in {int(path.name) for path in Path("/dev/fd").iterdir()} - {0, 1, 2, nothing, *passed_files}:
        with suppress(OSError):
            os.fstat(file)  # raises for the folder itself, which is closed again
            os.dup2(nothing, file, inheritable=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    code = 0
    gc.unfreeze, gc.get_freeze_count = lambda: None, lambda: 0  # a collection in a fork would copy all memory
    gc.enable()
    try:
        exec(words[-1], {})
    except SystemExit:
        pass
    except BaseException:
        code = 1
    os._exit(code)


def _call(environment: dict[str, str], function: Callable[..., Any], arguments: tuple) -> None:
    """Call a function in a fork of the server."""
    import torch

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)
