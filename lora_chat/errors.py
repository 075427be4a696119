"""Errors that the user can fix, each with a message and an exit code; they are printed without a traceback."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LoraChatError(Exception):
    """An error that the user can fix; its text names the problem, the place and the fix."""

    exit_code = 1


class UsageError(LoraChatError):
    """An option, an argument or a path on the command line that cannot be used."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe, or a setting of `--set`, that cannot be used."""


class DataError(LoraChatError):
    """Training data that cannot be used."""

    exit_code = 3


class RefusedDataError(DataError):
    """Training data that the audit refuses, by the policy of the recipe."""


class TemplateError(LoraChatError):
    """A chat template that exceeds its limit of time, memory or text; no dialogue is the cause."""

    exit_code = 3


class DiskFullError(LoraChatError):
    """A disk with too little free space for a file."""

    exit_code = 4


class OutOfMemoryError(LoraChatError):
    """A model or a batch that does not fit into memory.

    `default_fix` is advice that the command line may replace, because the fix depends on the command.
    """

    exit_code = 5

    def __init__(self, message: str, default_fix: str = "") -> None:
        super().__init__(message, default_fix)
        self.message, self.default_fix = message, default_fix

    def __str__(self) -> str:
        return f"{self.message}\nFix: {self.default_fix}" if self.default_fix else self.message


class NonFiniteError(LoraChatError):
    """A loss, a gradient or weights that are NaN or infinite."""

    exit_code = 6


class IntegrityError(LoraChatError):
    """A file with unexpected content: another base's adapter, damage, or a merged model that differs."""

    exit_code = 7


class ConsentError(IntegrityError):
    """A part of a stranger's file that is used only with the user's consent, which is a flag of the command."""

    def __init__(self, message: str, flag: str) -> None:
        super().__init__(message, flag)
        self.message, self.flag = message, flag

    def __str__(self) -> str:
        return f"{self.message}\nIf you trust it, add {self.flag}"


class UnavailableError(LoraChatError):
    """A base model, a GPU or an optional package that is not available."""

    exit_code = 8


class MissingPackageError(UnavailableError):
    """An optional package that is not installed."""


class InUseError(LoraChatError):
    """A folder in which another process works."""

    exit_code = 9


class DiskError(LoraChatError):
    """A read or write that failed because of the disk or its file system."""

    exit_code = 10


class ReportedError(LoraChatError):
    """The end of a command whose message another process, or another part of the program, has printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class StoppedError(LoraChatError):
    """The orderly end of a command after a signal; the text says what was saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # a copy in another process is made from these arguments
        self.message, self.exit_code = message, 128 + signal_number

    def __str__(self) -> str:
        return self.message


@contextmanager
def explain_write_errors(
    path: str | os.PathLike[str], what: str, needed_bytes: int | None = None, fix: str = ""
) -> Iterator[None]:
    """Turn a failed write of `what` to `path` into an error that the user can fix.

    `needed_bytes` is the size of the file, if known; `fix` replaces the advice at the end of the message.
    safetensors reports the system's error only as text: https://github.com/huggingface/safetensors raises
    SafetensorError("... (os error 28)"), which is not an OSError.
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
                f"{_format_free_space(path, needed_bytes)}No incomplete file was left there. "
                + (fix or "Free some space, or choose another folder with --set output.directory=DIR.")
            ) from error
        if number in _NOT_WRITABLE_ERRNOS:
            raise UsageError(
                f"Cannot write {what}: {path} ({os.strerror(number or 0)}).\n"
                "Choose another folder with --set output.directory=DIR."
            ) from error
        if number in _IO_ERROR_ERRNOS:
            raise DiskError(
                f"The system could not write {what}: {path} ({os.strerror(number or 0)}).\n"
                + (fix or "The disk or its file system may be failing; choose another folder.")
            ) from error
        raise


def explain_disk_error(error: OSError) -> LoraChatError | None:
    """Return the message for a full or failing disk that no writer has explained, or None for any other error."""
    path = error.filename2 or error.filename or "a file of the program"
    if error.errno in _DISK_FULL_ERRNOS:
        return DiskFullError(f"No space left to write: {path}. Free some space, and run the command again.")
    if error.errno in _IO_ERROR_ERRNOS:
        return DiskError(
            f"The system could not read or write: {path} ({os.strerror(error.errno or 0)}).\n"
            "The disk or its file system may be failing."
        )
    return None


_DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
    match = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(match[1]) if match else None


def _format_free_space(path: str | os.PathLike[str], needed_bytes: int | None) -> str:
    folder = Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    needed_text = f"About {needed_bytes / 1e6:.1f} MB are needed, " if needed_bytes else ""
    try:
        import shutil

        return f"{needed_text}{shutil.disk_usage(folder).free / 1e6:.1f} MB are free. "
    except OSError:
        return ""
