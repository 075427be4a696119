"""An adapter as somebody hands it over: nothing of it is believed before it was checked."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lora_chat.config.recipe import AdapterSection
from lora_chat.errors import IntegrityError
from lora_chat.models.identity import Identity

if TYPE_CHECKING:
    import torch

_LORA_FIELDS = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora"}
# These say nothing about the function, or are set by PEFT itself.
_IGNORED_FIELDS = {
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "task_type",
    "peft_version",
    "fan_in_fan_out",
}
_EMPTY_VALUES: tuple[Any, ...] = (None, False, [], {})
_MODULE_NAME = re.compile(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100}){0,20}")
_MAX_TARGETS = 2000


@dataclass(frozen=True)
class StoredAdapter:
    """Config, weights, identity and template, from a folder or a parcel."""

    name: str
    """What messages call it."""
    config: Mapping[str, Any]
    read_weights: "Callable[[], dict[str, torch.Tensor]]"
    """Reads all tensors; raises IntegrityError if they cannot be read."""
    identity: Identity | None
    """What it was trained on; None for one from another tool."""
    template: str | None
    size: int = 0
    """Bytes of the file of its weights, where that is not bounded already."""

    @property
    def base(self) -> tuple[str, str | None]:
        """Name and revision of the base that its config names."""
        name, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        if not isinstance(name, str) or not name:
            raise IntegrityError(f"The config of {self.name} names no base model.")
        return name, revision if isinstance(revision, str) else None


def validate_lora_settings(stored: StoredAdapter, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The handful of settings we know, typed, as arguments of LoraConfig.

    Anything else that differs from PEFT's `defaults` is refused: regexes, replicated layers, other modules.
    """
    where, config = f"The adapter {stored.name}", stored.config
    if config.get("peft_type") != "LORA":
        raise IntegrityError(f"{where}: only LoRA adapters can be read, not {ascii(config.get('peft_type'))[:100]}.")
    for key, value in config.items():
        if key in _LORA_FIELDS | _IGNORED_FIELDS | {"peft_type"}:
            continue
        if value != defaults.get(key) and value not in _EMPTY_VALUES:
            raise IntegrityError(f"{where}: {ascii(key)[1:101]} = {ascii(value)[:100]} is not supported.")
    targets = config.get("target_modules")
    if (
        not isinstance(targets, list)
        or not 0 < len(targets) <= _MAX_TARGETS
        or not all(isinstance(target, str) and _MODULE_NAME.fullmatch(target) for target in targets)
    ):
        raise IntegrityError(f"{where}: target_modules must be a list of names.")
    try:
        checked = AdapterSection(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            target_modules=tuple(targets),
            variant="rslora" if config.get("use_rslora") is True else "lora",
        )
    except KeyError as error:
        raise IntegrityError(f"{where}: its config has no {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        wrong = ": ".join([*map(str, first["loc"][:1]), first["msg"]])
        raise IntegrityError(f"{where} holds settings out of range ({wrong}).") from error
    return {
        "r": checked.rank,
        "lora_alpha": checked.alpha,
        "lora_dropout": checked.dropout,
        "target_modules": list(checked.target_modules),
        "use_rslora": config.get("use_rslora") is True,
        "use_dora": config.get("use_dora") is True,
    }


def build_peft_config(settings: Mapping[str, Any], base: str | None, revision: str | None) -> dict[str, Any]:
    """What an `adapter_config.json` must say for PEFT, and nothing else; `settings` are those of
    `validate_lora_settings`.
    """
    return {
        **settings,
        "target_modules": sorted(settings["target_modules"]),
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "inference_mode": True,
        "base_model_name_or_path": base,
        "revision": revision,
    }
