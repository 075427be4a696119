"""Isolated child interpreters; the only module of lora_chat that starts processes.

A worker imports nothing from the working directory, PYTHONPATH or the user's site folder. It works in a new empty
folder, gets no secrets from the environment, and does not use the hub. A worker that takes too long is killed together
with its forks, and a worker ends when the process that started it has ended.
"""

import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path

from lora_chat.system.environment import worker_environment

_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
_START_SCRIPT = Path(__file__).resolve().with_name("worker_start.py")
_LIBRARIES = ("torch", "transformers", "lora_chat")
"""Modules whose location decides whether the user's site folder is needed."""
_MIN_TIMEOUT_SECONDS = 900
_BYTES_PER_SECOND = 2_000_000
"""Lowest expected speed of a worker, in bytes of its files per second."""
_PIPE_TIMEOUT_SECONDS = 5
"""Longest wait for the pipes of a killed worker, in seconds."""


@dataclass(frozen=True)
class WorkerResult:
    """The exit code and the output of a worker."""

    exit_code: int
    """Exit code; 0 after success, negative after a signal or the time limit."""
    stdout: str
    stderr: str

    def stderr_tail(self, count: int = 8) -> str:
        """Return the last non-empty lines of stderr."""
        return "\n".join([line for line in self.stderr.splitlines() if line.strip()][-count:])


def run_worker(
    code: str | Path,
    arguments: Sequence[str] = (),
    *,
    timeout: float,
    stdin: str = "",
    passed_variables: Iterable[str] = (),
    memory: int | None = None,
    interpreter: Path | None = None,
) -> WorkerResult:
    """Run a module (a name) or a script (a path) in an isolated child interpreter and wait for its end.

    Paths among the arguments must be absolute. `timeout` is in seconds. `passed_variables` are patterns such as `PIP_*`
    of environment variables that the worker gets although they may contain secrets. `memory` limits its address space,
    in bytes. `interpreter` is another Python, which runs a script with the packages of its own environment.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lora-chat-", ignore_cleanup_errors=True) as folder,
        start_worker(
            code,
            arguments,
            folder=Path(folder),
            passed_variables=passed_variables,
            memory=memory,
            interpreter=interpreter,
        ) as process,
    ):
        try:
            stdout, stderr = process.communicate(stdin.encode(), timeout=timeout)
        except subprocess.TimeoutExpired:
            kill_worker(process)
            with suppress(subprocess.TimeoutExpired):  # a process that left the group may keep the pipes open
                process.communicate(timeout=_PIPE_TIMEOUT_SECONDS)
            return WorkerResult(-9, "", f"It was stopped after {timeout:.0f} seconds.")
        except BaseException:
            kill_worker(process)
            raise
    return WorkerResult(process.returncode, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))


def start_worker(
    code: str | Path,
    arguments: Sequence[str] = (),
    *,
    folder: Path,
    passed_variables: Iterable[str] = (),
    only: Iterable[str] | None = None,
    settings: Mapping[str, str] | None = None,
    memory: int | None = None,
    quiet: bool = False,
    interpreter: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Start an isolated child interpreter with pipes for binary data; the caller ends it with `kill_worker`.

    `folder` is its working directory and its folder for temporary files. `only` lists the environment variables that it
    gets instead of all harmless ones; `settings` are added to them. `quiet` discards its stderr. `run_worker` describes
    the other parameters.
    """
    command = [sys.executable, "-I", "-X", "utf8", str(_START_SCRIPT)]
    if interpreter is not None and isinstance(code, Path):
        # A wrapper may set PYTHONPATH, which -I would ignore. Copies keep the files beside the scripts unimportable.
        start, code = (Path(shutil.copy(script, folder)) for script in (_START_SCRIPT, code))
        command = [str(interpreter), "-X", "utf8", str(start)]
    request = {
        "code": str(code.absolute()) if isinstance(code, Path) else code,
        "is_script": isinstance(code, Path),
        "package": str(_PACKAGE_FOLDER) if isinstance(code, str) and code.split(".")[0] == _PACKAGE_FOLDER.name else "",
        "arguments": list(arguments),
        "sites": [] if interpreter else _user_site_folders(),
        "memory": memory,
        "parent": os.getpid(),
    }
    return subprocess.Popen(  # noqa: S603 - no shell, and no argument comes from a stranger
        [*command, json.dumps(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else subprocess.PIPE,
        bufsize=0,
        cwd=folder,
        env={**worker_environment(folder, passed_variables, only), **(settings or {})},
        start_new_session=True,
    )


def interpreter_command() -> list[str]:
    """Return the start of a command line that runs lora_chat in another interpreter, without the working directory."""
    return [sys.executable, str(_PACKAGE_FOLDER / "__main__.py")]


def wait_for_worker(process: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    """Return the exit code of a worker, or None if it still runs after `seconds`."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def kill_worker(process: "subprocess.Popen[bytes]") -> None:
    """Kill a worker and its forks."""
    with suppress(ProcessLookupError):  # it may have just ended; this error must not hide the reason for the kill
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def worker_timeout_seconds(*paths: Path) -> float:
    """Return the time limit for work on these files, in seconds: 15 minutes, and more for large files."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return _MIN_TIMEOUT_SECONDS + sum(file.stat().st_size for file in files if file.is_file()) / _BYTES_PER_SECOND


def pool_context() -> BaseContext | None:
    """Return the start method for a pool of processes, or None if only a single process is safe.

    A fork starts no interpreter, and it can crash on macOS (https://github.com/python/cpython/issues/77906). Systems
    without fork run `python -c`, which imports from the working directory unless
    PYTHONSAFEPATH is set, and Python 3.10 ignores that variable.
    """
    if os.name == "posix" and sys.platform != "darwin" and "fork" in get_all_start_methods():
        return get_context("fork")
    if sys.version_info < (3, 11):
        return None
    os.environ["PYTHONSAFEPATH"] = "1"
    return get_context("spawn")


def _user_site_folders() -> list[str]:
    """Return the user's site folder if lora_chat or a library is installed there, because workers need it then."""
    if not site.ENABLE_USER_SITE:
        return []
    folder = Path(site.getusersitepackages()).resolve()
    return [str(folder)] if any(folder in Path(path).resolve().parents for path in _list_library_files()) else []


def _list_library_files() -> Iterator[str]:
    for name in _LIBRARIES:
        with suppress(ValueError):  # a module without a specification
            spec = find_spec(name)
            if spec and spec.origin:
                yield spec.origin
