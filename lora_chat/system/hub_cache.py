"""Links in the hub's cache: each leads to a blob of the same repository, and nowhere else."""

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
    """Return the folder of the repository to which a resolved snapshot belongs: REPOSITORY/snapshots/COMMIT."""
    if snapshot.parent.name != "snapshots":
        return None
    repository = snapshot.parent.parent
    blobs = repository / "blobs"
    return repository if blobs.is_dir() and not blobs.is_symlink() else None


def is_blob_link(link: Path, repository: Path | None) -> bool:
    """Return whether a link leads to a regular file right inside the blobs of its repository.

    The blob may itself be a link into the store that all repositories of a cache share, as newer versions of the
    hub's library make it: CACHE/blobs/ab/HASH.
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
    """Check that a folder is a commit of a model's repository in a cache, where no other user can write.

    A planted note of what a branch leads to can name any folder. Raises IntegrityError.
    """
    repository = cache.expanduser().resolve() / f"models--{name.replace('/', '--')}"
    if folder != repository / "snapshots" / folder.name or not _COMMIT.fullmatch(folder.name):
        raise IntegrityError(
            f"The hub's cache says that {sanitize_line(name)} lies in {sanitize_line(str(folder))}, outside of its "
            f"own folder.\n"
            f"Delete it and download again: {sanitize_line(str(repository))}"
        )
    if os.name == "nt":  # Windows gives each user a profile that others cannot write to
        return
    for place in (repository, folder.parent, folder, repository / "blobs"):
        if place.exists() and place.stat().st_mode & stat.S_IWOTH:
            raise IntegrityError(
                f"Any user can write to {sanitize_line(str(place))} and could replace what it holds.\n"
                f"Close it: chmod -R o-w {sanitize_line(str(repository))}"
            )


def has_size_and_digest(path: Path, size: int, sha256: str | None) -> bool:
    """Return whether a file has a size and a SHA-256, if that is known."""
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
    """Return the path of one file of a snapshot. Raises IntegrityError for a planted link, device or FIFO, by name."""
    root = folder.resolve()
    path = root / file
    inside = path.parent.resolve().is_relative_to(root)  # a folder in it may be a link too
    mode = path.lstat().st_mode if inside and os.path.lexists(path) else 0
    if inside and (
        not mode or stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and is_blob_link(path, find_repository_folder(root)))
    ):
        return folder / file
    raise IntegrityError(
        f"{sanitize_line(str(folder / file))} in the hub's cache is no file of its repository, or a link that leads "
        "elsewhere.\n"
        f"Delete the folder and download again: {sanitize_line(str(folder))}"
    )


def _link_target(link: Path) -> Path:
    return Path(os.path.normpath(link.parent / link.readlink()))
