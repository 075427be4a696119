"""A base from the Hugging Face hub."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lora_chat.errors import BaseUnavailableError

# No .bin, .pt or .py: neither pickles nor code are ever downloaded.
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]


def find_here(name: str, revision: str | None) -> Path | None:
    """The folder of a commit that is on this machine already, whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError, HFValidationError):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED, local_files_only=True))
        return folder if _is_whole(folder) else None
    return None


def find_on_hub(name: str, revision: str | None, notice: Callable[[str], None]) -> Path:
    """The folder of a commit, which its name is; downloaded once, without code or pickles.

    Raises BaseUnavailableError with what to do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    here = find_here(name, revision)
    if here:
        return here
    notice(f"Downloading {name} from the hub")
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except RepositoryNotFoundError as error:
        raise BaseUnavailableError(
            f"The hub has no model {name}, or it asks for a login.\nCheck the name; for a gated model set HF_TOKEN."
        ) from error
    except Exception as error:  # every network library below has exceptions of its own
        raise BaseUnavailableError(
            f"The base {name} is not on this machine and the hub cannot be reached "
            f"({type(error).__name__}).\n"
            "Go online once, name a local folder, or use the embedded base: "
            "--set base.name=smollm2-135m-instruct"
        ) from error
    if not _is_whole(path):
        raise BaseUnavailableError(
            f"{name} from the hub lacks config.json or weights in safetensors.\n"
            "Either its download was interrupted (go online once), or it holds pickled weights alone, which are "
            "never read (choose another repository or revision)."
        )
    return path


def _is_whole(folder: Path) -> bool:
    """Whether all that is needed is there: an interrupted download leaves a folder too."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weights = set(json.loads(index.read_text()).get("weight_map", {}).values())
    else:
        weights = {"model.safetensors"}
    return all((folder / name).is_file() for name in {"config.json"} | weights)
