"""Parcels uploaded to the hub and downloaded from it, with verification."""

import logging
import re
from pathlib import Path

from lora_chat.errors import UsageError
from lora_chat.sharing.build import write_parcel
from lora_chat.sharing.container import PARCEL_SUFFIX
from lora_chat.sharing.hub import download, upload
from lora_chat.sharing.parcel import open_parcel
from lora_chat.system.console import display_path, format_bytes, quote_path
from lora_chat.system.user_path import expand_user_path

logger = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def push_parcel(path: str, repository: str, *, private: bool) -> dict[str, str]:
    """Verify a parcel and upload it. Raise IntegrityError for the parcel, or UnavailableError for the hub."""
    _check_repository_name(repository)
    parcel = open_parcel(expand_user_path(path))
    commit = upload(parcel.members, repository, private=private)
    logger.info(
        f"Pushed to {repository} at {commit[:12]}. With lora_chat: lora-chat pull {repository}. Without: "
        f"PeftModel.from_pretrained(base, '{repository}')"
    )
    return {"repository": repository, "commit": commit, "sha256": parcel.sha256}


def pull_parcel(repository: str, revision: str | None, out: Path | None, signer: Path | None) -> dict[str, str]:
    """Download the members of a parcel, rebuild it, and write it only after verification."""
    _check_repository_name(repository)
    to = expand_user_path(out or repository.split("/")[1] + PARCEL_SUFFIX).absolute()
    if to.is_dir():
        to = to / (repository.split("/")[1] + PARCEL_SUFFIX)
    members, commit = download(repository, revision)
    write_parcel(members, to, lambda beside: open_parcel(beside, signer, name=repository))
    parcel = open_parcel(to, signer)
    logger.info(f"Pulled and verified {display_path(to)} ({format_bytes(to.stat().st_size)}), sha256 {parcel.sha256}")
    logger.info(f"Next: lora-chat verify {quote_path(to)}, or lora-chat chat {quote_path(to)}")
    return {"parcel": str(to), "repository": repository, "commit": commit, "sha256": parcel.sha256}


def _check_repository_name(repository: str) -> None:
    """Raise UsageError if a name cannot be a repository of the hub."""
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"{repository} is not the name of a hub repository. Fix: write OWNER/NAME.")
