"""Members of a parcel as a repository of the Hugging Face hub, and back.

A repository holds them under the names that PEFT looks for, so that `PeftModel.from_pretrained` opens it without
lora_chat. The token is that of the environment (HF_TOKEN) or of the hub's own store (`hf auth login`).
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lora_chat.errors import BaseUnavailableError, IntegrityError, LoraChatError, RecipeError
from lora_chat.sharing.container import LARGEST, MEMBERS, SIGNATURE


def upload(members: Mapping[str, bytes], repository: str, *, private: bool, notice: Callable[[str], None]) -> str:
    """Send all members in one commit, whose id is returned; the repository is made if it is not there.

    Files that an older parcel left there and this one has not (a signature) are deleted in the same commit.
    Raises BaseUnavailableError for a hub that cannot be reached or refuses, RecipeError for a bad name.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    with _explained(repository):
        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        there = set(api.list_repo_files(repository))
        notice(f"Sending {sum(map(len, members.values())) / 1e6:.1f} MB to {repository}")
        stale = [name for name in (*MEMBERS, SIGNATURE) if name in there and name not in members]
        done = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, body) for name, body in members.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message="Adapter, receipt and card",
        )
    return str(done.oid)


def download(repository: str, revision: str | None, notice: Callable[[str], None]) -> tuple[dict[str, bytes], str]:
    """The members of one commit, and its id; nothing else of the repository is fetched, nor kept on the disk.

    Raises BaseUnavailableError for a hub that cannot be reached, IntegrityError for members that are too large or
    missing.
    """
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    with _explained(repository, revision), tempfile.TemporaryDirectory(prefix="lora-chat-") as room:
        found = HfApi().model_info(repository, revision=revision)
        commit = str(found.sha)
        there = {file.rfilename for file in found.siblings or ()}
        if missing := [name for name in MEMBERS if name not in there]:
            raise IntegrityError(
                f"{repository} has no {missing[0]}: it was not pushed by lora_chat. "
                "Plain adapters can be downloaded with `hf download` and used by their folder."
            )
        names = [*MEMBERS, *([SIGNATURE] if SIGNATURE in there else [])]
        sizes = {}
        for name in names:
            sizes[name] = get_hf_file_metadata(hf_hub_url(repository, name, revision=commit)).size or 0
            if sizes[name] > LARGEST[name]:
                raise IntegrityError(f"{name} in {repository} has {sizes[name]:,} bytes; {LARGEST[name]:,} are allowed")
        notice(f"Fetching {sum(sizes.values()) / 1e6:.1f} MB from {repository} at {commit[:12]}")
        return {name: _fetch(repository, name, commit, Path(room)) for name in names}, commit


def _fetch(repository: str, name: str, commit: str, room: Path) -> bytes:
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(repository, name, revision=commit, local_dir=room))
    if path.stat().st_size > LARGEST[name]:
        raise IntegrityError(f"{name} in {repository} is larger than the {LARGEST[name]:,} bytes that are allowed")
    return path.read_bytes()


@contextmanager
def _explained(repository: str, revision: str | None = None) -> Iterator[None]:
    """What the hub's library raises, as messages; its own texts quote requests, so they are not passed on."""
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except LoraChatError:
        raise
    except HFValidationError as error:
        raise RecipeError(f"{repository} cannot be a repository of the hub: write OWNER/NAME.") from error
    except RevisionNotFoundError as error:
        raise BaseUnavailableError(f"{repository} has no revision {revision}.") from error
    except Exception as error:  # every network library below has exceptions of its own
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
            raise BaseUnavailableError(
                f"The hub has no {repository}, or does not let you in there.\n"
                "Check the name; log in with `hf auth login`, or set HF_TOKEN to a token that may write if you push."
            ) from error
        raise BaseUnavailableError(
            f"The hub cannot be reached, or failed ({type(error).__name__}"
            f"{f', status {status}' if status else ''}). Nothing was kept half; try again."
        ) from error
