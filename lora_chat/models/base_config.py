"""Config and size of a base whose weights may not be on this machine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.config.recipe import BaseSection
from lora_chat.errors import UnavailableError
from lora_chat.models.base_files import check_base_files
from lora_chat.models.base_model import LocalBase, find_base, is_base_local, read_config
from lora_chat.models.hub import download_small_files
from lora_chat.models.model_errors import describe_unreadable_config
from lora_chat.models.shape import read_shape
from lora_chat.models.weight_files import check_no_pickles_alone
from lora_chat.system.hub_client import HubFailureError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_BYTES_PER_WEIGHT = 2
"""Bytes of a weight in the files of known bases."""


@dataclass(frozen=True)
class BaseConfig:
    """The parts of a base that a plan needs."""

    name: str
    config: Mapping[str, object]
    folder: Path | None
    """Folder with its tokenizer; None if only its config is known."""
    weight_bytes: int | None
    """Size of its files of weights, in bytes; None if unknown."""
    download_bytes: int | None
    """Size of the download that `sft` needs, in bytes; None if unknown."""
    origin: str
    """Source of these facts."""


def find_planned_base(base: BaseSection) -> BaseConfig:
    """Return the config of a base on this machine or in the table of known bases without a request, else of the hub."""
    known = None if is_base_local(base) else read_known_configs().get(base.name)
    return find_base_config(base) if known is None else _use_known_config(base.name, known)


def find_base_config(base: BaseSection) -> BaseConfig:
    """Return the config of a base on this machine, on the hub, or in the table of known bases.

    No weights are downloaded. Raises UnavailableError.
    """
    if is_base_local(base) or base.name.startswith((".", "/", "~")) or base.name.count("/") != 1:
        local = find_base(base)
        check_no_pickles_alone(local.folder)
        size = sum(path.stat().st_size for path in local.folder.glob("*.safetensors"))
        return BaseConfig(local.name, _read_text_config(local.folder), local.folder, size, 0, "this machine")
    try:
        return _find_config_on_hub(base)
    except HubFailureError as error:
        known = read_known_configs().get(base.name)
        if known is None:
            raise UnavailableError(
                f"The config of {base.name} is not on this machine, the hub cannot be reached "
                f"({error.what}), and it is not one of the known bases "
                f"({', '.join(read_known_configs())}).\nFix: go online once, or name a local folder."
            ) from error
        return _use_known_config(base.name, known)


def _use_known_config(name: str, known: Mapping[str, object]) -> BaseConfig:
    """Return a base of the table of known bases, whose weights are not on this machine."""
    size = _BYTES_PER_WEIGHT * read_shape(known, name).weights
    return BaseConfig(name, known, None, size, size, "the table of known bases")


def _find_config_on_hub(base: BaseSection) -> BaseConfig:
    """Download a base's small files and return its config. Raises HubFailureError."""
    folder, weights = download_small_files(base.name, base.revision)
    return BaseConfig(base.name, _read_text_config(folder), folder, weights or None, weights or None, "the hub")


def make_config(base: BaseConfig) -> "PretrainedConfig":
    """Return the config of a base as Transformers loads it. Raises UnavailableError."""
    from transformers import AutoConfig

    if base.folder is not None:
        return read_config(LocalBase(base.name, base.folder))
    fields = {key: value for key, value in base.config.items() if key != "model_type"}
    try:
        config: PretrainedConfig = AutoConfig.for_model(str(base.config.get("model_type")), **fields)
    except Exception as error:
        raise describe_unreadable_config(base.name, error) from error
    return config


def _read_text_config(folder: Path) -> dict[str, object]:
    """Return the config of the language model: `text_config` if there is one, otherwise the whole config."""
    config = check_base_files(folder)
    text_config = config.get("text_config")
    return dict(text_config) if isinstance(text_config, dict) else dict(config)


def read_known_configs() -> dict[str, dict[str, object]]:
    """Return the configs of widely used bases by name, for planning without the hub."""
    text = (files("lora_chat.models") / "known_bases.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
