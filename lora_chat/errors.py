"""What the user can fix: one message and one exit code each, printed without a traceback."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LoraChatError(Exception):
    """A failure that has a remedy; its text says what is wrong, where, and what to do."""

    exit_code = 1


class RecipeError(LoraChatError):
    """The recipe, an option or a path on the command line cannot be used."""

    exit_code = 2


class DataError(LoraChatError):
    """Dialogues that would waste the run."""

    exit_code = 3


class TemplateError(LoraChatError):
    """A chat template took more time, memory or text than any real one; no dialogue is to blame."""

    exit_code = 3


class DiskFullError(LoraChatError):
    """No room left where something is to be written."""

    exit_code = 4


class OutOfMemoryError(LoraChatError):
    """The model or a batch of it does not fit into memory."""

    exit_code = 5


class NonFiniteError(LoraChatError):
    """Loss, gradient or weights stopped being numbers."""

    exit_code = 6


class IntegrityError(LoraChatError):
    """A file is not what it should be: another base's adapter, damage, a merge that differs."""

    exit_code = 7


class ConsentError(IntegrityError):
    """Something of a stranger is used only after a yes, which is a flag of the command."""

    def __init__(self, message: str, flag: str) -> None:
        super().__init__(message, flag)
        self.message, self.flag = message, flag

    def __str__(self) -> str:
        return f"{self.message}\nIf you trust it, say so: {self.flag}"


class UnavailableError(LoraChatError):
    """The base model is neither here nor within reach."""

    exit_code = 8


class InUseError(LoraChatError):
    """Another process works in the same folder."""

    exit_code = 9


class DiskError(LoraChatError):
    """The system could not read or write what should be possible."""

    exit_code = 10


class StoppedError(LoraChatError):
    """A signal ended the work in good order; the text says what was saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextmanager
def explain_write_errors(
    path: str | os.PathLike[str], what: str, needed_bytes: int | None = None, fix: str = ""
) -> Iterator[None]:
    """Turn a failed write of `what` (perhaps of `needed_bytes` bytes) to `path` into a message that may end with `fix`.

    safetensors reports the system's error only as text: https://github.com/huggingface/safetensors
    raises SafetensorError("... (os error 28)"), which is no OSError.
    """
    try:
        yield
    except LoraChatError:
        raise
    except Exception as error:
        number = _get_errno(error)
        if number in _DISK_FULL_ERRNOS:
            raise DiskFullError(
                f"No space left to write {what}: {path}\n"
                f"{_format_free_space(path, needed_bytes)}Nothing was left half written there. "
                + (fix or "Free some space, or choose another place with --set output.directory=DIR.")
            ) from error
        if number in _NOT_WRITABLE_ERRNOS:
            raise RecipeError(
                f"Cannot write {what}: {path} ({os.strerror(number or 0)}).\n"
                "Choose another place with --set output.directory=DIR."
            ) from error
        if number in _IO_ERROR_ERRNOS:
            raise DiskError(
                f"The system could not write {what}: {path} ({os.strerror(number or 0)}).\n"
                + (fix or "The disk or its file system may be failing; choose another place.")
            ) from error
        raise


def explain_disk_error(error: OSError) -> LoraChatError | None:
    """Return the message for a full or failing disk that no writer has explained, or None for any other error."""
    path = error.filename2 or error.filename or "a file of the program"
    if error.errno in _DISK_FULL_ERRNOS:
        return DiskFullError(f"No space left to write: {path}. Free some space, and run the command again.")
    if error.errno in _IO_ERROR_ERRNOS:
        words = os.strerror(error.errno or 0)
        return DiskError(
            f"The system could not read or write: {path} ({words}).\nThe disk or its file system may be failing."
        )
    return None


_DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE_ERRNOS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
_IO_ERROR_ERRNOS = {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.ESTALE}


def _get_errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def _format_free_space(path: str | os.PathLike[str], needed_bytes: int | None) -> str:
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    needed_text = f"About {needed_bytes / 1e6:.1f} MB are needed, " if needed_bytes else ""
    try:
        import shutil

        return f"{needed_text}{shutil.disk_usage(place).free / 1e6:.1f} MB are free. "
    except OSError:
        return ""
