"""Upload the members of a parcel to a repository of the Hugging Face hub, and download them.

The members have the names that PEFT looks for, so that `PeftModel.from_pretrained` opens the repository without
lora_chat. The token comes from the environment (HF_TOKEN) or from the store of `hf auth login`.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lora_chat.errors import IntegrityError, UnavailableError, UsageError
from lora_chat.sharing.container import MAX_MEMBER_BYTES, REQUIRED_MEMBERS, SIGNATURE
from lora_chat.system.hub_client import HubFailureError, fetch_file, find_commit, list_files, upload_files

logger = logging.getLogger(__name__)


def upload(members: Mapping[str, bytes], repository: str, *, private: bool) -> str:
    """Upload all members in one commit and return its id; create the repository if it does not exist.

    The same commit deletes files of an older parcel that this one does not have, such as a signature.
    Raises UnavailableError if the hub cannot be reached or refuses, UsageError for an invalid name.
    """
    with _translate_hub_errors(repository):
        logger.info(f"Sending {sum(map(len, members.values())) / 1e6:.1f} MB to {repository}")
        stale = [name for name in (*REQUIRED_MEMBERS, SIGNATURE) if name not in members]
        return upload_files(repository, members, stale, private=private, message="Adapter, receipt and card")


def download(repository: str, revision: str | None) -> tuple[dict[str, bytes], str]:
    """Download the members of one commit; return them and the id of the commit.

    No other file of the repository is fetched, and nothing stays on the disk. Raises UnavailableError if the hub cannot
    be reached, IntegrityError for members that are too large or missing.
    """
    with _translate_hub_errors(repository, revision), tempfile.TemporaryDirectory(prefix="lora-chat-") as work_folder:
        commit = find_commit(repository, revision, "model")
        listing = list_files(repository, commit, "model")
        if missing := [name for name in REQUIRED_MEMBERS if name not in listing]:
            raise IntegrityError(
                f"{repository} has no {missing[0]}, so it was not uploaded by `lora-chat push`. "
                "Fix: download the adapter with `hf download` and name its folder."
            )
        names = [*REQUIRED_MEMBERS, *([SIGNATURE] if SIGNATURE in listing else [])]
        for name in names:
            if listing[name].size > MAX_MEMBER_BYTES[name]:
                raise IntegrityError(
                    f"{name} in {repository} has {listing[name].size:,} bytes; {MAX_MEMBER_BYTES[name]:,} are allowed"
                )
        total_bytes = sum(listing[name].size for name in names)
        logger.info(f"Fetching {total_bytes / 1e6:.1f} MB from {repository} at {commit[:12]}")
        return {
            name: fetch_file(repository, name, commit, MAX_MEMBER_BYTES[name], Path(work_folder)) for name in names
        }, commit


@contextmanager
def _translate_hub_errors(repository: str, revision: str | None = None) -> Iterator[None]:
    """Raise the error that explains to the user why a request to the hub failed."""
    try:
        yield
    except HubFailureError as error:
        if error.reason == "name":
            raise UsageError(f"{repository} is not a name of a repository. Fix: write OWNER/NAME.") from error
        if error.reason == "revision":
            raise UnavailableError(f"{repository} has no revision {revision}.") from error
        if error.reason == "missing":
            raise UnavailableError(
                f"The hub has no repository {repository}, or does not give you access to it.\n"
                "Fix: check the name, log in with `hf auth login`, or set HF_TOKEN (for push: a token that may write)."
            ) from error
        raise UnavailableError(
            f"The hub cannot be reached, or failed ({error.what}). No incomplete file was kept. Fix: try again."
        ) from error
