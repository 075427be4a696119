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


class SpaceError(LoraChatError):
    """No room left where something is to be written."""

    exit_code = 4


class MemoryShortError(LoraChatError):
    """The model or a batch of it does not fit into memory."""

    exit_code = 5


class NotFiniteError(LoraChatError):
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


class BaseUnavailableError(LoraChatError):
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
    path: str | os.PathLike[str], what: str, needed: int | None = None, after: str = ""
) -> Iterator[None]:
    """Turn a failed write of `what` (perhaps of `needed` bytes) to `path` into a message that may end with `after`.

    safetensors reports the system's error only as text: https://github.com/huggingface/safetensors
    raises SafetensorError("... (os error 28)"), which is no OSError.
    """
    try:
        yield
    except LoraChatError:
        raise
    except Exception as error:
        number = _errno(error)
        if number in _FULL:
            raise SpaceError(
                f"No space left to write {what}: {path}\n"
                f"{_room(path, needed)}Nothing was left half written there. "
                + (after or "Free some space, or choose another place with --set output.directory=DIR.")
            ) from error
        if number in _DENIED:
            raise RecipeError(
                f"Cannot write {what}: {path} ({os.strerror(number or 0)}).\n"
                "Choose another place with --set output.directory=DIR."
            ) from error
        if number in _FAILED:
            raise DiskError(
                f"The system could not write {what}: {path} ({os.strerror(number or 0)}).\n"
                + (after or "The disk or its file system may be failing; choose another place.")
            ) from error
        raise


def explain_disk_error(error: OSError) -> LoraChatError | None:
    """Return the message for a full or failing disk that no writer has explained, or None for any other error."""
    path = error.filename2 or error.filename or "a file of the program"
    if error.errno in _FULL:
        return SpaceError(f"No space left to write: {path}. Free some space, and run the command again.")
    if error.errno in _FAILED:
        words = os.strerror(error.errno or 0)
        return DiskError(
            f"The system could not read or write: {path} ({words}).\nThe disk or its file system may be failing."
        )
    return None


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_FAILED = {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.ESTALE}


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def _room(path: str | os.PathLike[str], needed: int | None) -> str:
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    want = f"About {needed / 1e6:.1f} MB are needed, " if needed else ""
    try:
        import shutil

        return f"{want}{shutil.disk_usage(place).free / 1e6:.1f} MB are free. "
    except OSError:
        return ""
