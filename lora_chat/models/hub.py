"""Find or download a base from the Hugging Face hub."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from lora_chat.errors import IntegrityError, UnavailableError
from lora_chat.models.base_files import TOKENIZER_FILES
from lora_chat.models.other_kinds import ADAPTER_CONFIG_NAME, explain_other_adapter, explain_other_repository
from lora_chat.system.bounded_files import MEDIUM_FILE_BYTES, read_json_object
from lora_chat.system.hub_answers import check_file_name
from lora_chat.system.hub_client import (
    HubFailureError,
    RemoteFile,
    download_files,
    find_commit,
    find_snapshot,
    list_files,
)

logger = logging.getLogger(__name__)

NON_WEIGHT_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files of a base except for its weights."""
# No .bin, .pt or .py, because neither pickles nor code are downloaded.
_BASE_PATTERNS = ("*.safetensors", *NON_WEIGHT_PATTERNS)
_ADAPTER_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"
_ADAPTER_PATTERNS = (
    ADAPTER_CONFIG_NAME,
    *_ADAPTER_WEIGHTS,
    *TOKENIZER_FILES,
    "chat_template.json",
    "*chat_template*.jinja",
)
"""Files of an adapter, with its tokenizer and chat template."""
_OFFLINE_BASE_FIX = "Fix: go online once, name a local folder, or use the embedded base, smollm2-135m-instruct"
_PARCEL_MEMBER = "receipt.json"
_MAX_FILE_BYTES = {"config.json": 1_000_000, ".jinja": 1_000_000, ".json": 200_000_000, ".model": 100_000_000}
_MAX_TEXT_BYTES = 100_000_000  # a list of merges has 2 MB
_MAX_FILES = 2_000
_INDEX_NAME = "model.safetensors.index.json"


def find_cached_base(name: str, revision: str | None) -> Path | None:
    """Return the folder of a commit that is complete on this machine, without a request; None otherwise."""
    folder = find_snapshot(name, revision, _BASE_PATTERNS)
    return folder if folder and _is_complete(folder) else None


def find_or_download_base(name: str, revision: str | None) -> Path:
    """Return the folder of a commit, whose name is the commit. It is downloaded once, without code or pickles.

    Raises UnavailableError with the fix, IntegrityError for files that differ from the hub's list.
    """
    cached = find_cached_base(name, revision)
    if cached:
        return cached
    logger.info(f"Downloading {name} from the hub")
    with _translate_hub_errors(name):
        commit = find_commit(name, revision, "model")
        listed = list_files(name, commit, "model")
        if other := explain_other_repository(listed, name):
            raise UnavailableError(other)
        files = select_files(listed, name, _BASE_PATTERNS)
        path = download_files(name, revision, commit, files)
    if not _is_complete(path):
        raise UnavailableError(
            f"{name} from the hub lacks config.json or weights in safetensors.\n"
            "Its download was interrupted, or it has only pickled weights, which are never read. "
            "Fix: go online once, or choose another repository or revision."
        )
    return path


def find_cached_adapter(name: str) -> Path | None:
    """Return the folder of an adapter that is complete on this machine, without a request; None otherwise."""
    folder = find_snapshot(name, None, _ADAPTER_PATTERNS)
    is_complete = (
        folder
        and (folder / ADAPTER_CONFIG_NAME).is_file()
        and any((folder / weights).is_file() for weights in _ADAPTER_WEIGHTS)
    )
    return folder if is_complete else None


def find_or_download_adapter(name: str) -> Path:
    """Return the folder of an adapter on the hub. It is downloaded once, without code or pickles.

    Raises UnavailableError with the fix, IntegrityError for files that differ from the hub's list.
    """
    cached = find_cached_adapter(name)
    if cached:
        return cached
    logger.info(f"Downloading {name} from the hub")
    with _translate_hub_errors(name, "adapter"):
        commit = find_commit(name, None, "model")
        listed = list_files(name, commit, "model")
        if _PARCEL_MEMBER in listed:
            raise UnavailableError(f"{name} is a parcel on the hub. Fix: lora-chat pull {name}, and name the file.")
        if other := explain_other_adapter(listed, name):
            raise UnavailableError(other)
        if ADAPTER_CONFIG_NAME not in listed:
            raise UnavailableError(f"{name} on the hub is not an adapter: it has no {ADAPTER_CONFIG_NAME}.")
        if not any(weights in listed for weights in _ADAPTER_WEIGHTS):
            raise UnavailableError(
                f"{name} on the hub has no adapter in safetensors ({_ADAPTER_WEIGHTS[0]}); pickles are never read.\n"
                "Fix: if you trust it, load it with PEFT and save it again (save_pretrained), and name that folder."
            )
        return download_files(name, None, commit, select_files(listed, name, _ADAPTER_PATTERNS))


def is_adapter_on_hub(name: str) -> bool:
    """Return whether a repository of the hub contains an adapter and no base. Raises HubFailureError."""
    listed = list_files(name, find_commit(name, None, "model"), "model")
    return ADAPTER_CONFIG_NAME in listed and explain_other_repository(listed, name) is not None


def can_reach_hub(name: str) -> bool:
    """Return whether the hub answers and has a base of this name."""
    try:
        find_commit(name, None, "model")
    except UnavailableError:  # no connection, no such base, or an answer that no honest hub sends
        return False
    return True


def download_small_files(name: str, revision: str | None) -> tuple[Path, int]:
    """Return a folder with a base's files except for its weights, and the size of the weights in bytes.

    Raises HubFailureError if the hub cannot be reached.
    """
    commit = find_commit(name, revision, "model")
    files = list_files(name, commit, "model")
    if other := explain_other_repository(files, name):
        raise UnavailableError(other)
    small = select_files(files, name, NON_WEIGHT_PATTERNS)
    folder = download_files(name, revision, commit, small)
    return folder, sum(file.size for path, file in files.items() if path.endswith(".safetensors"))


def select_files(files: Mapping[str, RemoteFile], name: str, patterns: Sequence[str]) -> dict[str, RemoteFile]:
    """Return the files that match a pattern. Raises IntegrityError for too many files or one that is too large."""
    wanted = {path: file for path, file in files.items() if any(fnmatchcase(path, pattern) for pattern in patterns)}
    if len(wanted) > _MAX_FILES:
        raise IntegrityError(f"{name} has {len(wanted):,} files for a base; the limit is {_MAX_FILES:,}.")
    for path, file in wanted.items():
        if path.endswith(".safetensors"):
            continue
        limit = _MAX_FILE_BYTES.get(path, _MAX_FILE_BYTES.get(Path(path).suffix, _MAX_TEXT_BYTES))
        if file.size > limit:
            raise IntegrityError(f"{path} in {name} has {file.size:,} bytes; the limit is {limit:,}.")
    return wanted


@contextmanager
def _translate_hub_errors(name: str, kind: str = "base") -> Iterator[None]:
    """Raise UnavailableError with the fix in place of HubFailureError."""
    try:
        yield
    except HubFailureError as error:
        if error.reason == "missing":
            raise UnavailableError(
                f"The hub has no model {name}, or it needs a login.\n"
                "Fix: check the name; for a gated model set HF_TOKEN."
            ) from error
        raise UnavailableError(
            f"The {kind} {name} is not on this machine and the hub cannot be reached ({error.what}).\n"
            + (_OFFLINE_BASE_FIX if kind == "base" else "Fix: go online once, or name a local folder.")
        ) from error


def _is_complete(folder: Path) -> bool:
    """Return whether config and weights are there, because an interrupted download leaves a folder too."""
    weights = {"model.safetensors"}
    if (folder / _INDEX_NAME).is_file():
        try:
            weights = {
                check_file_name(file)
                for file in read_json_object(folder / _INDEX_NAME, MEDIUM_FILE_BYTES)["weight_map"].values()
            }
        except (OSError, TypeError, KeyError, AttributeError, IntegrityError, UnavailableError) as error:
            raise IntegrityError(
                f"{folder / _INDEX_NAME} is not an index of weights.\nFix: delete it and download again."
            ) from error
    return all((folder / name).is_file() for name in {"config.json"} | weights)
