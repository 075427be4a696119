"""The private folders of this user: a cache that can be deleted at any time, and a configuration that cannot."""

import os
import stat
from itertools import accumulate
from pathlib import Path

import platformdirs

from lora_chat.errors import IntegrityError

_APPLICATION = "lora-chat"


def cache_dir(*parts: str) -> Path:
    """Return a folder inside the user's cache, created with mode 0700 if it is missing.

    Raise IntegrityError if the cache belongs to another user or others can write to it, because its contents (bases,
    digests, encoded dialogues) are used without a check.
    """
    return _make_private_folder(Path(platformdirs.user_cache_dir(_APPLICATION)), parts)


def config_dir(*parts: str) -> Path:
    """Return a folder inside the user's configuration folder, created and checked as `cache_dir` does."""
    return _make_private_folder(Path(platformdirs.user_config_dir(_APPLICATION)), parts)


def _make_private_folder(root: Path, parts: tuple[str, ...]) -> Path:
    """Create and check a folder and each folder between it and `root`. Return it."""
    if not root.is_absolute():  # the XDG standard ignores relative paths as well
        raise IntegrityError(
            f"The folder {root} depends on the working directory, which may belong to a stranger.\n"
            "Set the full path: XDG_CACHE_HOME=/FOLDER and XDG_CONFIG_HOME=/FOLDER."
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    for folder in accumulate(parts, Path.joinpath, initial=root):
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_private(folder)
    return root.joinpath(*parts)


def _check_private(folder: Path) -> None:
    """Raise IntegrityError if another user owns a folder or can write to it."""
    if os.name == "nt":  # Windows gives each user a profile that others cannot write to
        return
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        status = folder.stat()  # this user may have made the link, so its target is checked
    if status.st_uid not in (os.geteuid(), 0):
        raise IntegrityError(
            f"The folder {folder} belongs to another user, who could replace its contents.\n"
            "Delete it, or choose another cache: XDG_CACHE_HOME=FOLDER."
        )
    if status.st_mode & 0o022:
        raise IntegrityError(
            f"Other users can write to the folder {folder} and could replace its contents.\n"
            f"Deny them access: chmod go-w {folder}"
        )
