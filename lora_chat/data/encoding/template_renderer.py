"""Start the worker that renders untrusted chat templates (`template_worker`), and send it requests."""

import atexit
import hashlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock, Timer
from typing import TYPE_CHECKING, Any

from lora_chat.data.encoding.render_requests import RenderJob, split_into_requests
from lora_chat.data.encoding.template_worker import (
    EXIT_OUT_OF_MEMORY,
    EXIT_OUTPUT_TOO_LONG,
    JobAnswer,
    RenderRequest,
    expand_prefixes,
)
from lora_chat.errors import DataError, TemplateError
from lora_chat.system.frames import FrameError, FrameTimeoutError, exchange_frames, pack_frame, unpack_frame
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.worker import start_worker, wait_for_worker

if TYPE_CHECKING:
    import subprocess

_START_TIMEOUT_SECONDS = 120.0
"""Timeout of the worker's start, in seconds; its imports are slow on a busy machine."""
_GRACE_SECONDS = 3.0
"""Seconds that the worker has to end before it is killed."""


def render_in_worker(
    template: str, special: Mapping[str, object], jobs: Sequence[RenderJob]
) -> list[list[str] | DataError]:
    """Return the texts of each job, or the reason why the template refuses it.

    Raises TemplateError if the template takes more time or memory, or writes more text, than any real one.
    """
    texts: list[list[str]] = [[] for _ in jobs]
    errors: dict[int, DataError] = {}
    with _lock:
        for request, owners in split_into_requests(template, special, jobs):
            answers = _get_worker().send_request(request)
            for owner, answer in zip(owners, answers, strict=True):
                if "error" in answer:
                    errors.setdefault(owner, _to_data_error(answer))
                else:
                    texts[owner] += expand_prefixes(answer["texts"])
    return [errors.get(number, job_texts) for number, job_texts in enumerate(texts)]


def close_worker() -> None:
    """Stop the worker, if it runs."""
    global _worker
    if _worker is not None:
        _worker.close()
        _worker = None


def _to_data_error(answer: JobAnswer) -> DataError:
    """Return the error of a job as a DataError; a TypeError becomes its cause."""
    reason = sanitize_line(str(answer["error"]) or str(answer["kind"]), 300)
    if answer.get("compiling"):
        error = DataError(f"the base's chat template cannot be compiled: {reason}")
    else:
        error = DataError(f"the base's chat template refuses it: {reason}")
    if answer["kind"] == "TypeError":  # `encode` then retries with the arguments of calls as text
        error.__cause__ = TypeError(reason)
    return error


class _TemplateWorker:
    """A worker process that is ready for requests."""

    def __init__(self) -> None:
        self._child = _start_worker_process()
        assert self._child.stdin is not None and self._child.stdout is not None
        self._stdin_fd, self._stdout_fd = self._child.stdin.fileno(), self._child.stdout.fileno()
        if os.name != "nt":
            os.set_blocking(self._stdin_fd, False)
            os.set_blocking(self._stdout_fd, False)
        self._exchange(None, b"", 1 << 10, _START_TIMEOUT_SECONDS, "starting")

    def send_request(self, request: RenderRequest) -> list[JobAnswer]:
        """Return the answers; any failure stops the worker, so that the next request starts another."""
        template = request["template"]
        name = f"The chat template (sha256 {hashlib.sha256(template.encode('utf-8', 'replace')).hexdigest()[:12]}...)"
        answer = self._exchange(self._stdin_fd, pack_frame(request), request["most"], request["seconds"], name)
        answers: list[JobAnswer] = answer["jobs"]
        return answers

    def _exchange(self, to: int | None, sent: bytes, max_bytes: int, seconds: float, name: str) -> Any:
        """Send a frame and return the value of the answer; raises TemplateError if it does not come in time."""
        began = time.monotonic()
        try:
            if os.name == "nt":
                return self._exchange_blocking(to, sent, max_bytes, seconds + _GRACE_SECONDS)
            return exchange_frames(to, sent, self._stdout_fd, max_bytes, seconds + _GRACE_SECONDS)
        except FrameError as error:
            late = isinstance(error, FrameTimeoutError) or time.monotonic() - began >= seconds
            code = self._terminate()
            if to is None:
                raise TemplateError(
                    f"The process that renders chat templates did not start (exit {code}). "
                    "Fix: check that lora_chat is installed in this Python and that enough memory is free."
                ) from error
            raise TemplateError(_describe_failure(name, code, late, seconds)) from error
        except BaseException:
            self._terminate()
            raise

    def _exchange_blocking(self, to: int | None, sent: bytes, max_bytes: int, seconds: float) -> Any:
        """Exchange frames on a system without non-blocking pipes; the worker is killed after its time limit."""
        watch = Timer(seconds, self._child.kill)
        watch.start()
        try:
            if to is not None:
                left = memoryview(sent)
                while left:
                    left = left[os.write(to, left) :]
            size = int.from_bytes(self._read(8), "big")
            if size > max_bytes:
                raise FrameError("answered too much")
            return unpack_frame(self._read(size))
        except OSError as error:
            raise FrameError("ended") from error
        finally:
            watch.cancel()

    def _read(self, size: int) -> bytes:
        """Read exactly `size` bytes of the answer."""
        data = bytearray()
        while len(data) < size:
            piece = os.read(self._stdout_fd, size - len(data))
            if not piece:
                raise FrameError("ended")
            data += piece
        return bytes(data)

    def _terminate(self) -> int:
        """Kill the worker if it still runs, and return its exit code."""
        global _worker
        if _worker is self:
            _worker = None
        code = wait_for_worker(self._child, 0.2 if self._child.poll() is None else 0)
        if code is None:
            self._child.kill()
            code = self._child.wait()
        self.close_pipes()
        return code

    def close(self) -> None:
        """Close the pipes, so that the worker ends, and kill it if it does not."""
        self.close_pipes()
        if wait_for_worker(self._child, 2) is None:
            self._child.kill()
            self._child.wait()

    def close_pipes(self) -> None:
        """Close this process's ends of the pipes; the worker ends when its input ends."""
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def detach(self) -> None:
        """Forget the worker in a forked process, because it belongs to the parent."""
        self.close_pipes()
        self._child.returncode = 0


def _describe_failure(name: str, code: int, late: bool, seconds: float) -> str:
    """Return the message for a worker that ended before its answer."""
    if code == EXIT_OUT_OF_MEMORY:
        failure = "needs more memory than any real template; it was stopped"
    elif code == EXIT_OUTPUT_TOO_LONG:
        failure = "writes far more text than the messages contain; it was stopped"
    elif late or code == -getattr(signal, "SIGXCPU", 0):
        failure = f"did not finish in {seconds:.0f} seconds; it was stopped"
    else:
        failure = f"ended the process that renders it (exit {code})"
    return f"{name} {failure}. Fix: --set data.template=chatml, or use another base or adapter."


def _start_worker_process() -> "subprocess.Popen[bytes]":
    """Start the worker with a minimal environment."""
    return start_worker(
        "lora_chat.data.encoding.template_worker",
        folder=Path(os.sep),  # it writes no files
        only=("PATH", "LANG", "LC_ALL", "LC_TIME", "TZ", "SYSTEMROOT", "HOME", "HF_HOME"),
        settings={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        quiet=True,
    )


def _get_worker() -> _TemplateWorker:
    """Return the running worker, started if needed."""
    global _worker
    if _worker is None:
        _worker = _TemplateWorker()
    return _worker


def _after_fork() -> None:
    """Give a forked process a lock and no worker."""
    global _worker, _lock
    _lock = RLock()
    if _worker is not None:
        _worker.detach()
        _worker = None


_lock = RLock()
_worker: _TemplateWorker | None = None
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(close_worker)
