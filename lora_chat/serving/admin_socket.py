"""A local socket by which the owner of a server loads and unloads models; no address of the network leads to it.

One request is one line of JSON, and so is its answer. Only the user who started the server, and root, can connect: the
socket has mode 0600 from its first moment on, and each connection is asked for its user.
"""

import errno
import json
import logging
import os
import socket
import stat
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from lora_chat.errors import IntegrityError, InUseError, UnavailableError, UsageError
from lora_chat.serving.admin_commands import answer_command
from lora_chat.system.file_lock import acquire_lock
from lora_chat.system.regular_files import describe_file_type, open_regular_file
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.strict_json import parse_strict_json

if TYPE_CHECKING:
    from lora_chat.pipeline.open_adapter import TrustOptions
    from lora_chat.pipeline.served_models import ServedModels

logger = logging.getLogger(__name__)

_MAX_LINE_BYTES = 2**16
_MAX_CONNECTIONS = 8
"""Connections at once; further ones are closed."""
_IDLE_SECONDS = 30.0
"""Longest wait for a request on an open connection, in seconds."""
_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 3600.0
"""Longest waits of a client for a connection, and for an answer, which follows after the proof of an adapter."""
_PRIVATE_MODE = 0o600


class AdminListener:
    """A bound socket that does not answer yet, so that a wrong path is reported before weights load."""

    def __init__(self, path: Path) -> None:
        self.path = _check_location(path)
        self._lock = _lock_beside(self.path)
        try:
            self.socket = _bind(self.path)
            self._inode = os.lstat(self.path).st_ino
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Close and delete the socket, unless another file has its path now."""
        self.socket.close()
        with suppress(OSError):
            if os.lstat(self.path).st_ino == self._inode:
                self.path.unlink()
        with suppress(OSError):
            os.close(self._lock)


class AdminServer:
    """The threads that answer on an admin socket."""

    def __init__(self, listener: AdminListener, models: "ServedModels", trust: "TrustOptions") -> None:
        self._listener, self._models, self._trust = listener, models, trust
        self._free = threading.Semaphore(_MAX_CONNECTIONS)

    def start(self) -> None:
        """Answer from now on."""
        threading.Thread(target=self._accept, name="admin socket", daemon=True).start()
        logger.info(f"Load and unload models: lora-chat serve --admin {self._listener.path} --load THING")

    def _accept(self) -> None:
        """Accept connections until the socket is closed."""
        while True:
            try:
                connection, _ = self._listener.socket.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.EINTR):
                    threading.Event().wait(1.0)
                    continue
                return
            if not _is_allowed(connection) or not self._free.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._answer, args=(connection,), name="admin", daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        """Answer the lines of a connection."""
        try:
            with connection, connection.makefile("rwb") as stream:
                connection.settimeout(_IDLE_SECONDS)
                while line := stream.readline(_MAX_LINE_BYTES + 1):
                    answer = self._answer_line(line)
                    stream.write(json.dumps(answer).encode("ascii") + b"\n")
                    stream.flush()
                    if len(line) > _MAX_LINE_BYTES:
                        return
        except (OSError, ValueError):  # the client left
            return
        finally:
            self._free.release()

    def _answer_line(self, line: bytes) -> dict[str, JsonValue]:
        """Return the answer to one line."""
        try:
            if len(line) > _MAX_LINE_BYTES:
                raise ValueError(f"is longer than {_MAX_LINE_BYTES} bytes")
            request: JsonValue = parse_strict_json(line.decode("utf-8"))
        except ValueError as error:
            return {"ok": False, "error": f"The request {str(error)[:200]}.", "exit_code": UsageError.exit_code}
        try:
            return answer_command(self._models, self._trust, request)
        except Exception as error:
            logger.exception("A command of the admin socket failed.")
            return {"ok": False, "error": f"internal error ({type(error).__name__})", "exit_code": 1}


def ask_admin(path: Path, request: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Send a request to the server of a socket and return its answer. Raise UnavailableError if none answers."""
    _check_system()
    where = sanitize_line(str(path), 300)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_CONNECT_SECONDS)
        try:
            client.connect(str(path))
            client.settimeout(_ANSWER_SECONDS)
            client.sendall(json.dumps(request).encode("ascii") + b"\n")
            with client.makefile("rb") as stream:
                answer = json.loads(stream.readline())
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"No server answers at {where} ({error}). Fix: start one with lora-chat serve RUN --admin {where}"
            ) from error
    return dict(answer)


def _check_system() -> None:
    """Raise UsageError on a system without Unix domain sockets."""
    if not hasattr(socket, "AF_UNIX"):
        raise UsageError("--admin needs a system with Unix domain sockets, such as Linux or macOS.")


def _check_location(path: Path) -> Path:
    """Return the path with its real folder. Raise UsageError for a folder where others could replace the socket."""
    shown = sanitize_line(str(path), 300)
    _check_system()
    folder = path.absolute().parent.resolve()
    if not folder.is_dir():
        raise UsageError(f"--admin {shown}: {sanitize_line(str(folder), 300)} is not a folder. Fix: make it.")
    status = folder.stat()
    is_shared = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and not status.st_mode & stat.S_ISVTX
    if is_shared or status.st_uid not in (os.geteuid(), 0):
        raise UsageError(
            f"--admin {shown}: other users can replace files in {sanitize_line(str(folder), 300)}. "
            "Fix: choose a folder of your own, such as $XDG_RUNTIME_DIR."
        )
    return folder / path.name


def _lock_beside(path: Path) -> int:
    """Lock a file beside a socket for as long as its server lives. Raise InUseError if another server has it."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        handle = open_regular_file(lock, os.O_RDWR | os.O_CREAT)
    except (OSError, IntegrityError) as error:
        raise UsageError(f"--admin {path}: {lock} cannot be used ({error}). Fix: choose another path.") from error
    if not acquire_lock(handle, wait=False):
        os.close(handle)
        raise InUseError(f"Another server uses the admin socket {path}. Fix: choose another path for --admin.")
    return handle


def _bind(path: Path) -> socket.socket:
    """Return a listening socket at a path, in place of one that a dead server left."""
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        path.chmod(_PRIVATE_MODE)
        listening.listen(_MAX_CONNECTIONS)  # nobody could connect before
    except OSError as error:
        listening.close()
        raise UsageError(f"--admin {path}: {error.strerror or error}. Fix: choose another, shorter path.") from error
    return listening


def _remove_stale(path: Path) -> None:
    """Delete the socket of a dead server. Raise UsageError for any other file, InUseError for a living server."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(
            f"--admin {path}: there is {describe_file_type(mode)}, which is not deleted. Fix: choose another path."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_CONNECT_SECONDS)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise UsageError(f"--admin {path}: {error.strerror or error}. Fix: choose another path.") from error
    raise InUseError(f"Another server answers at {path}. Fix: choose another path for --admin.")


def _is_allowed(connection: socket.socket) -> bool:
    """Return whether the other end is this user or root; True on systems that do not say it."""
    if sys.platform != "linux":
        return True
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", raw)
    return user in (os.geteuid(), 0)
