"""Client of the Hugging Face hub: commits, listings, downloads and uploads, with checks of every response.

All uses of huggingface_hub go through this module. Requests and responses pass `hub_guard`. Names, sizes and hashes
come from the listing of one commit, and downloaded files are compared with it.
"""

import errno
import glob
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_chat.errors import DiskFullError, IntegrityError, LoraChatError, UnavailableError
from lora_chat.system.console import shows_live_displays
from lora_chat.system.hub_answers import (
    MAX_FILES,
    check_commit,
    check_revision,
    is_commit_hash,
    is_safe_revision,
    refused_response,
)
from lora_chat.system.hub_cache import check_cached_file, check_snapshot, has_size_and_digest
from lora_chat.system.hub_pending import clear_pending, is_download_verified, mark_pending
from lora_chat.system.received_folder import check_received_folder

if TYPE_CHECKING:
    from lora_chat.system.hub_guard import HubGuard

RepoType = Literal["model", "dataset"]
_TIMEOUT_SECONDS = 30.0  # until the first response, because a network that drops all packets would wait forever


@dataclass(frozen=True)
class RemoteFile:
    """A file in the listing of a commit."""

    size: int
    """Size in bytes."""
    sha256: str | None
    """SHA-256, or None for a file in git itself, for which the hub lists no such hash."""


class HubFailureError(UnavailableError):
    """A failed request to the hub; the caller explains it to the user."""

    def __init__(self, reason: Literal["name", "missing", "revision", "unreachable"], what: str) -> None:
        super().__init__(f"The hub cannot be used: {what}.")
        self.reason, self.what = reason, what


def find_commit(name: str, revision: str | None, kind: RepoType) -> str:
    """Return the current commit of a revision. Raise HubFailureError or HubResponseError."""
    check_revision(revision)
    with hub_request():
        from huggingface_hub.hf_api import HfApi

        api = HfApi()
        read_info = api.dataset_info if kind == "dataset" else api.model_info
        info = read_info(name, revision=revision, expand=["sha"], timeout=_TIMEOUT_SECONDS)
    return check_commit(info.sha, revision if is_commit_hash(revision) else None)


def list_files(name: str, commit: str, kind: RepoType) -> dict[str, RemoteFile]:
    """Return the files of a commit by name. Raise HubFailureError or HubResponseError."""
    with hub_request():
        from huggingface_hub.hf_api import HfApi, RepoFile

        tree = HfApi().list_repo_tree(name, recursive=True, revision=commit, repo_type=kind)
        entries = list(islice(tree, MAX_FILES + 1))
    if len(entries) > MAX_FILES:
        raise refused_response(f"it lists more than {MAX_FILES:,} files")
    return {
        entry.path: RemoteFile(entry.lfs.size if entry.lfs else entry.size, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def find_snapshot(name: str, revision: str | None, patterns: Sequence[str]) -> Path | None:
    """Return the cached folder of a commit if all matching files are complete, without any request; else None.

    Raise IntegrityError for a folder whose links lead out of the cache.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if not is_safe_revision(revision):
        return None
    with suppress(LocalEntryNotFoundError, HFValidationError):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=True))
        check_snapshot(folder, name, Path(constants.HF_HUB_CACHE))
        check_received_folder(folder)
        return folder if is_download_verified(name, folder.name, "model", folder) else None
    return None


def find_hub_cache() -> Path:
    """Return the folder in which the hub's library keeps downloads; it may not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().absolute()


def find_cached_file(name: str, file: str, commit: str, kind: RepoType) -> Path | None:
    """Return the cached file of a commit, or None. Raise IntegrityError for a link that leads out of the cache."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, file, revision=check_commit(commit), repo_type=kind)
    if not isinstance(path, str):
        return None
    folder = Path(path).parents[file.count("/")]
    return check_cached_file(folder, file)


def download_files(
    name: str,
    revision: str | None,
    commit: str,
    files: Mapping[str, RemoteFile],
    kind: RepoType = "model",
) -> Path:
    """Download listed files of a commit into the hub's cache, compare them with the listing, return their folder.

    The cache then maps `revision` to the commit. Raise HubFailureError, HubResponseError or IntegrityError, or
    DiskFullError before the download if the files cannot fit.
    """
    _check_space(name, commit, files, kind)
    limits = {file: listed_file.size for file, listed_file in files.items()}
    listing = {file: (listed_file.size, listed_file.sha256) for file, listed_file in files.items()}
    with mark_pending(name, commit, kind, listing):
        with hub_request(limits, name, commit, kind):
            from huggingface_hub import snapshot_download

            only = [glob.escape(file) for file in files]  # the library's listing may contain more files
            folder = Path(
                snapshot_download(
                    name,
                    repo_type=kind,
                    revision=revision or None,
                    allow_patterns=only,
                    tqdm_class=_find_bar_class(),
                )
            )
        if folder.name != commit:
            raise HubFailureError("unreachable", f"{name} changed its commit during the download")
        for file, listed_file in files.items():
            _check_download(check_cached_file(folder, file), listed_file, f"{file} of {name}")
    clear_pending(name, commit, kind, listing)
    return folder


def _find_bar_class() -> "type[Any] | None":
    """Return the class of progress bars for a terminal; the class of the hub's library shows no bar otherwise."""
    if not shows_live_displays():
        return None
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class DownloadBar(tqdm):
        """A bar that is shown although the command line hides the bars of all libraries with TQDM_DISABLE."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{"disable": False, **options})

    return DownloadBar


def fetch_file(name: str, file: str, commit: str, limit: int, folder: Path) -> bytes:
    """Return the bytes of one file of a model's repository; `folder` is used for temporary files.

    Raise HubFailureError, HubResponseError, or IntegrityError for a file of more than `limit` bytes.
    """
    with hub_request({file: limit}, name, commit, "model"):
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(name, file, revision=commit, local_dir=folder))
    if path.stat().st_size > limit:
        raise IntegrityError(f"{file} in {name} is larger than the {limit:,} bytes that are allowed")
    return path.read_bytes()


def upload_files(
    name: str, members: Mapping[str, bytes], stale: Collection[str], *, private: bool, message: str
) -> str:
    """Upload files in one commit and return its id; the commit also deletes `stale` files that exist.

    The repository is created if it is missing. Raise HubFailureError or HubResponseError.
    """
    with hub_request():
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi()
        api.create_repo(name, private=private or None, exist_ok=True)
        existing = set(islice(api.list_repo_files(name), MAX_FILES))
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(file, body) for file, body in members.items()),
                *(CommitOperationDelete(file) for file in stale if file in existing),
            ],
            commit_message=message,
        )
    return check_commit(commit.oid)


@contextmanager
def hub_request(
    limits: Mapping[str, int] | None = None, name: str = "", commit: str | None = None, kind: RepoType = "model"
) -> Iterator["HubGuard"]:
    """Convert exceptions of the hub's library, whose texts quote requests and responses, into LoraChatError.

    `limits` lists all files that may be downloaded, each with its largest size in bytes.
    """
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    from lora_chat.system.hub_guard import ExpectedFile, install_guard

    guard = install_guard()
    try:
        guard.expect_files(
            {
                file_url(name, file, commit, kind): ExpectedFile(file, size, commit)
                for file, size in (limits or {}).items()
            }
        )
        yield guard
    except LoraChatError:
        raise
    except HFValidationError as error:
        raise HubFailureError("name", "the name is not a valid name of a repository") from error
    except RevisionNotFoundError as error:
        raise HubFailureError("revision", "it has no such revision") from error
    except Exception as error:  # each network library raises different exceptions
        if refusal := _find_refusal(error):
            raise refusal from None
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = f"{type(error).__name__}{f', status {status}' if status else ''}"
        if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
            raise HubFailureError("missing", what) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"No space left to download {name}.\nFree some space, or set HF_HOME.") from error
        raise HubFailureError("unreachable", what) from error
    finally:
        guard.expect_files({})


def _check_space(name: str, commit: str, files: Mapping[str, RemoteFile], kind: RepoType) -> None:
    """Raise DiskFullError if the files that are not cached yet do not fit on the disk."""
    from huggingface_hub import constants

    existing_folder = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    while not existing_folder.exists() and existing_folder != existing_folder.parent:
        existing_folder = existing_folder.parent
    free = shutil.disk_usage(existing_folder).free
    if sum(listed_file.size for listed_file in files.values()) <= free:
        return
    needed = sum(
        listed_file.size for file, listed_file in files.items() if find_cached_file(name, file, commit, kind) is None
    )
    if needed > free:
        raise DiskFullError(
            f"No space left to download {name}: {needed / 1e9:,.1f} GB are needed, {free / 1e9:,.1f} GB are free.\n"
            "Free some space, or set HF_HOME."
        )


def _find_refusal(error: BaseException) -> LoraChatError | None:
    """Return the error of `hub_guard` that the library wrapped in another exception, or None."""
    cause, seen = error.__cause__ or error.__context__, 0
    while cause is not None and seen < 20:
        if isinstance(cause, LoraChatError):
            return cause
        cause, seen = cause.__cause__ or cause.__context__, seen + 1
    return None


def file_url(name: str, file: str, commit: str | None, kind: RepoType) -> str:
    """Return the address of a file of a commit."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(name, file, repo_type=kind, revision=commit)


def _check_download(path: Path, listed_file: RemoteFile, what: str) -> None:
    """Raise IntegrityError for a downloaded file that differs from the listing, and delete it."""
    try:
        is_intact = has_size_and_digest(path, listed_file.size, listed_file.sha256)
    except OSError as error:  # a download was interrupted and the hub does not answer
        raise HubFailureError("unreachable", f"{what} is incomplete") from error
    if is_intact:
        return
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)  # `check_cached_file` has checked that it is in the cache
    raise IntegrityError(
        f"{what} is not the file that the hub lists: its size or SHA-256 differs. It was deleted.\n"
        "Try again. If it happens again, the hub or an intermediate server alters files."
    )
