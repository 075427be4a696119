"""The private folders of this user: a cache that can be deleted at any time, and a configuration that cannot."""

import os
import stat
from pathlib import Path

import platformdirs

from lora_chat.errors import IntegrityError

_APPLICATION = "lora-chat"


def cache_dir(*parts: str) -> Path:
    """Return a folder inside the user's cache, created with mode 0700 if it is missing.

    Raises IntegrityError if the cache belongs to another user or others can write to it, because what it holds
    (bases, digests, encoded dialogues) is used without being made again.
    """
    return _make_private_folder(Path(platformdirs.user_cache_dir(_APPLICATION)), parts)


def config_dir(*parts: str) -> Path:
    """Return a folder inside the user's configuration folder, created and checked as `cache_dir` does."""
    return _make_private_folder(Path(platformdirs.user_config_dir(_APPLICATION)), parts)


def _make_private_folder(root: Path, parts: tuple[str, ...]) -> Path:
    if not root.is_absolute():  # the standard of XDG says so too
        raise IntegrityError(
            f"The folder {root} depends on the working directory, which may be a stranger's.\n"
            "Give the full path: XDG_CACHE_HOME=/FOLDER and XDG_CONFIG_HOME=/FOLDER."
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = root
    for place in (root, *(root := root / part for part in parts)):
        place.mkdir(mode=0o700, exist_ok=True)
        _check_private(place)
        folder = place
    return folder


def _check_private(folder: Path) -> None:
    if os.name == "nt":  # Windows gives each user a profile that others cannot write to
        return
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        found = folder.stat()  # a link of this user's is a choice; its target is checked
    if found.st_uid not in (os.geteuid(), 0):
        raise IntegrityError(
            f"The folder {folder} belongs to another user, who could replace what it holds.\n"
            "Delete it, or choose another cache: XDG_CACHE_HOME=FOLDER."
        )
    if found.st_mode & 0o022:
        raise IntegrityError(
            f"Other users can write to the folder {folder} and could replace what it holds.\n"
            f"Close it: chmod go-w {folder}"
        )
