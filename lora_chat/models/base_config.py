"""What is known of a base without its weights: its config, its tokenizer's folder, how large its files are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from lora_chat.config.recipe import BaseSection
from lora_chat.errors import UnavailableError
from lora_chat.models.base_files import check_base_files
from lora_chat.models.base_model import find_base, is_base_local
from lora_chat.models.hub import download_small_files
from lora_chat.models.shape import read_shape
from lora_chat.system.hub_client import HubFailureError

_BYTES_PER_WEIGHT = 2
"""Of a weight in the files of the bases known by heart."""


@dataclass(frozen=True)
class BaseConfig:
    """A base as far as a plan needs it."""

    name: str
    config: Mapping[str, Any]
    folder: Path | None
    """With its tokenizer; None: only its widths are known here."""
    weight_bytes: int | None
    """Of its files of weights; None: not known."""
    download_bytes: int | None
    """What `sft` would have to fetch; None: not known."""
    origin: str
    """Where this is known from."""


def find_base_config(base: BaseSection) -> BaseConfig:
    """The config of a base that is here, on the hub, or in the table of known ones; no weights are fetched.

    Raises UnavailableError.
    """
    if is_base_local(base) or base.name.startswith((".", "/", "~")) or base.name.count("/") != 1:
        found = find_base(base)
        size = sum(path.stat().st_size for path in found.folder.glob("*.safetensors"))
        return BaseConfig(found.name, _read_text_config(found.folder), found.folder, size, 0, "this machine")
    try:
        return _find_config_on_hub(base)
    except HubFailureError as error:
        known = read_known_configs().get(base.name)
        if known is None:
            raise UnavailableError(
                f"The config of {base.name} is not on this machine, the hub cannot be reached "
                f"({error.what}), and it is none of the bases known by heart "
                f"({', '.join(read_known_configs())}).\nGo online once, or name a local folder."
            ) from error
        size = _BYTES_PER_WEIGHT * read_shape(known, base.name).weights
        return BaseConfig(base.name, known, None, size, size, "the table of known bases")


def _find_config_on_hub(base: BaseSection) -> BaseConfig:
    folder, weights = download_small_files(base.name, base.revision)
    return BaseConfig(base.name, _read_text_config(folder), folder, weights or None, weights or None, "the hub")


def _read_text_config(folder: Path) -> dict[str, Any]:
    config = check_base_files(folder)
    text_config = config.get("text_config")
    return dict(text_config) if isinstance(text_config, dict) else dict(config)


def read_known_configs() -> dict[str, Any]:
    """Configs of bases that many use, by name, for planning without the hub."""
    text = (files("lora_chat.models") / "known_bases.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
