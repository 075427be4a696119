"""Paths that users write in commands and recipes."""

import os
from contextlib import suppress
from pathlib import Path

from lora_chat.errors import UsageError

_MAX_SHOWN_CHARACTERS = 100


def expand_user_path(text: str | Path, where: str = "") -> Path:
    """Return a path with `~` and `~name` replaced. Raise UsageError, beginning with `where`, for an invalid path."""
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # raises for NUL bytes and names that are too long
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise UsageError(f"{where}{str(text)[:_MAX_SHOWN_CHARACTERS]!a} is not a usable path: {reason}.") from error
    return path
