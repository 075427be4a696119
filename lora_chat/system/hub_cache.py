"""Checks that links in the hub's cache lead only to blobs of the same repository."""

import hashlib
import os
import re
import stat
from pathlib import Path

from lora_chat.errors import IntegrityError
from lora_chat.system.sanitize import sanitize_line

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARED_BLOB = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


def find_repository_folder(snapshot: Path) -> Path | None:
    """Return the repository of a resolved snapshot REPOSITORY/snapshots/COMMIT, or None for any other folder."""
    if snapshot.parent.name != "snapshots":
        return None
    repository = snapshot.parent.parent
    blobs = repository / "blobs"
    return repository if blobs.is_dir() and not blobs.is_symlink() else None


def is_blob_link(link: Path, repository: Path | None) -> bool:
    """Return whether a link leads to a regular file directly inside the blobs of its repository.

    The blob may itself be a link into CACHE/blobs/ab/HASH, the store of newer versions of the hub's library that all
    repositories of a cache share.
    """
    if repository is None:
        return False
    try:
        target = _link_target(link)
        if target.parent != repository / "blobs":
            return False
        if target.is_symlink():
            store = repository.parent / "blobs"
            target = _link_target(target)
            if not target.is_relative_to(store) or not _SHARED_BLOB.fullmatch(target.relative_to(store).as_posix()):
                return False
            if store.is_symlink() or target.parent.is_symlink():
                return False
        return stat.S_ISREG(target.lstat().st_mode)
    except OSError:
        return False


def check_snapshot(folder: Path, name: str, cache: Path) -> None:
    """Raise IntegrityError unless a folder is a commit of a model in the cache and no other user can write to it.

    The cached commit of a branch may be planted, so that it leads to any folder.
    """
    repository = cache.expanduser().resolve() / f"models--{name.replace('/', '--')}"
    if folder != repository / "snapshots" / folder.name or not _COMMIT.fullmatch(folder.name):
        raise IntegrityError(
            f"The hub's cache has {sanitize_line(name)} in {sanitize_line(str(folder))}, outside of its folder.\n"
            f"Delete it and download it again: {sanitize_line(str(repository))}"
        )
    if os.name == "nt":  # Windows gives each user a profile that others cannot write to
        return
    for path in (repository, folder.parent, folder, repository / "blobs"):
        if path.exists() and path.stat().st_mode & stat.S_IWOTH:
            raise IntegrityError(
                f"Any user can write to {sanitize_line(str(path))} and could replace its contents.\n"
                f"Deny them access: chmod -R o-w {sanitize_line(str(repository))}"
            )


def has_size_and_digest(path: Path, size: int, sha256: str | None) -> bool:
    """Return whether a file has the given size and the given SHA-256, if that is known."""
    if path.stat().st_size != size:
        return False
    if sha256 is None:
        return True
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == sha256


def check_cached_file(folder: Path, file: str) -> Path:
    """Return the path of a file of a snapshot. Raise IntegrityError for a planted link, device or FIFO."""
    root = folder.resolve()
    path = root / file
    inside = path.parent.resolve().is_relative_to(root)  # a parent folder may be a link as well
    mode = path.lstat().st_mode if inside and os.path.lexists(path) else 0
    if inside and (
        not mode or stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and is_blob_link(path, find_repository_folder(root)))
    ):
        return folder / file
    raise IntegrityError(
        f"{sanitize_line(str(folder / file))} in the hub's cache is not a file of its repository, or is a link that "
        "leads elsewhere.\n"
        f"Delete the folder and download it again: {sanitize_line(str(folder))}"
    )


def _link_target(link: Path) -> Path:
    """Return the path that a link names, without following further links."""
    return Path(os.path.normpath(link.parent / link.readlink()))
