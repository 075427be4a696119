"""Members of a parcel as a repository of the Hugging Face hub, and back.

A repository holds them under the names that PEFT looks for, so that `PeftModel.from_pretrained` opens it without
lora_chat. The token is that of the environment (HF_TOKEN) or of the hub's own store (`hf auth login`).
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lora_chat.errors import IntegrityError, RecipeError, UnavailableError
from lora_chat.sharing.container import MAX_MEMBER_BYTES, REQUIRED_MEMBERS, SIGNATURE
from lora_chat.system.hub_client import HubFailureError, fetch_file, find_commit, list_files, upload_files

logger = logging.getLogger(__name__)


def upload(members: Mapping[str, bytes], repository: str, *, private: bool) -> str:
    """Send all members in one commit, whose id is returned; the repository is made if it is not there.

    Files that an older parcel left there and this one has not (a signature) are deleted in the same commit.
    Raises UnavailableError for a hub that cannot be reached or refuses, RecipeError for a bad name.
    """
    with _translate_hub_errors(repository):
        logger.info(f"Sending {sum(map(len, members.values())) / 1e6:.1f} MB to {repository}")
        stale = [name for name in (*REQUIRED_MEMBERS, SIGNATURE) if name not in members]
        return upload_files(repository, members, stale, private=private, message="Adapter, receipt and card")


def download(repository: str, revision: str | None) -> tuple[dict[str, bytes], str]:
    """The members of one commit, and its id; nothing else of the repository is fetched, nor kept on the disk.

    Raises UnavailableError for a hub that cannot be reached, IntegrityError for members that are too large or
    missing.
    """
    with _translate_hub_errors(repository, revision), tempfile.TemporaryDirectory(prefix="lora-chat-") as room:
        commit = find_commit(repository, revision, "model")
        there = list_files(repository, commit, "model")
        if missing := [name for name in REQUIRED_MEMBERS if name not in there]:
            raise IntegrityError(
                f"{repository} has no {missing[0]}: it was not pushed by lora_chat. "
                "Plain adapters can be downloaded with `hf download` and used by their folder."
            )
        names = [*REQUIRED_MEMBERS, *([SIGNATURE] if SIGNATURE in there else [])]
        for name in names:
            if there[name].size > MAX_MEMBER_BYTES[name]:
                raise IntegrityError(
                    f"{name} in {repository} has {there[name].size:,} bytes; {MAX_MEMBER_BYTES[name]:,} are allowed"
                )
        logger.info(
            f"Fetching {sum(there[name].size for name in names) / 1e6:.1f} MB from {repository} at {commit[:12]}"
        )
        return {
            name: fetch_file(repository, name, commit, MAX_MEMBER_BYTES[name], Path(room)) for name in names
        }, commit


@contextmanager
def _translate_hub_errors(repository: str, revision: str | None = None) -> Iterator[None]:
    try:
        yield
    except HubFailureError as error:
        if error.reason == "name":
            raise RecipeError(f"{repository} cannot be a repository of the hub: write OWNER/NAME.") from error
        if error.reason == "revision":
            raise UnavailableError(f"{repository} has no revision {revision}.") from error
        if error.reason == "missing":
            raise UnavailableError(
                f"The hub has no {repository}, or does not let you in there.\n"
                "Check the name; log in with `hf auth login`, or set HF_TOKEN to a token that may write if you push."
            ) from error
        raise UnavailableError(
            f"The hub cannot be reached, or failed ({error.what}). Nothing was kept half; try again."
        ) from error
