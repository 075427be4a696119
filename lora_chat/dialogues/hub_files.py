"""A split of a data set on the Hugging Face hub: its files at one commit, downloaded once, never code or pickles."""

import errno
import glob
import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_chat.dialogues.hub_splits import HubRepository, listed
from lora_chat.errors import BaseUnavailableError, DataError, LoraChatError, SpaceError
from lora_chat.system.cache_dir import cache_dir
from lora_chat.writing import write_text_whole

_PATIENCE = 30.0  # seconds for the first answer; a network that swallows everything would wait for ever


@dataclass(frozen=True)
class HubFiles:
    """The files of one split, in the hub's cache and in the order in which the split has them."""

    commit: str
    paths: tuple[Path, ...]


class _NotReachedError(BaseUnavailableError):
    """The hub gave no answer: what was downloaded before may do."""


def find_hub_files(
    name: str, split: str, subset: str | None, revision: str | None, notice: Callable[[str], None]
) -> HubFiles:
    """The files of a split, downloaded if they are not here; the newest commit of a branch when the hub answers.

    Raises DataError for a split, subset or kind of file that cannot be had, BaseUnavailableError for a data set.
    """
    from huggingface_hub.hf_api import HfApi, RepoFile

    key = hashlib.sha256(json.dumps([name, split, subset, revision]).encode()).hexdigest()
    note = cache_dir("hub") / f"{key[:32]}.json"
    known = _remembered(name, note)
    if known and known.commit == revision:
        return known
    try:
        with _explained(name, revision):
            commit = str(HfApi().dataset_info(name, revision=revision, expand=["sha"], timeout=_PATIENCE).sha)
            if known and known.commit == commit:
                return known
            tree = HfApi().list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
            sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
            card = _read_card(name, commit, sizes)
        files, left = HubRepository(name, sizes, card).choose(split, subset)
        if left:
            notice(f"Left out of {name}, of another kind than {files[0]}: {listed(left)}")
        size = sum(sizes[file] for file in files) / 1e6
        notice(f"Downloading {name} from the hub: {split}, {listed(files, 3)} ({size:.1f} MB)")
        with _explained(name, revision):
            return _download(name, commit, files, note)
    except _NotReachedError:
        if not known:
            raise
        notice(f"The hub cannot be reached: using {name} as last downloaded, commit {known.commit}")
        return known


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """What the hub's library raises, as messages; its own texts quote requests, so they are not passed on."""
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except LoraChatError:
        raise
    except HFValidationError as error:
        raise BaseUnavailableError(f"{name} cannot be the name of a data set on the hub.") from error
    except RevisionNotFoundError as error:
        raise BaseUnavailableError(f"The data set {name} has no revision {revision}.") from error
    except Exception as error:  # every network library below has exceptions of its own
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
            raise BaseUnavailableError(
                f"The hub has no data set {name}, or it asks for a login.\nCheck the name; "
                "for a private or gated data set accept its terms on its page and set HF_TOKEN."
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(f"No space left to download {name}.\nFree some space, or set HF_HOME.") from error
        raise _NotReachedError(
            f"The data set {name} is not whole on this machine and the hub cannot be reached "
            f"({type(error).__name__}{f', status {status}' if status else ''}).\n"
            "Go online and start again (files that are complete stay), or name local files."
        ) from error


def _read_card(name: str, commit: str, files: Collection[str]) -> dict[str, Any]:
    import yaml
    from huggingface_hub import hf_hub_download, metadata_load

    if "README.md" not in files:
        return {}
    try:
        return metadata_load(hf_hub_download(name, "README.md", repo_type="dataset", revision=commit)) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"The card of the data set {name} does not begin with valid YAML.") from error


def _download(name: str, commit: str, files: Collection[str], note: Path) -> HubFiles:
    from huggingface_hub import snapshot_download

    only = [glob.escape(file) for file in files]
    folder = Path(snapshot_download(name, repo_type="dataset", revision=commit, allow_patterns=only))
    # Without a network it may return the folder of an interrupted download: then stat fails, and nothing is noted.
    sizes = {file: (folder / file).stat().st_size for file in files}
    with suppress(OSError, LoraChatError):  # only a note: without it the hub is asked again next time
        write_text_whole(note, json.dumps({"name": name, "commit": commit, "files": sizes}), "a note")
    return HubFiles(commit, tuple(folder / file for file in files))


def _remembered(name: str, note: Path) -> HubFiles | None:
    """What was found the last time, if all of it is still in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(note.read_text(encoding="utf-8"))
        found = [try_to_load_from_cache(name, f, revision=said["commit"], repo_type="dataset") for f in said["files"]]
        paths = tuple(Path(path) for path in found if isinstance(path, str))
        if [path.stat().st_size for path in paths] == [*said["files"].values()]:
            return HubFiles(str(said["commit"]), paths)
    return None
