"""An adapter as somebody hands it over: nothing of it is believed before it was checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_chat.errors import IntegrityError
from lora_chat.models.identity import Identity
from lora_chat.planning.recipe import AdapterSection

if TYPE_CHECKING:
    import torch

_OURS = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora"}
# These say nothing about the function, or are set by PEFT itself.
_IGNORED = {"base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_version", "fan_in_fan_out"}
_NO_WORDS: tuple[Any, ...] = (None, False, [], {})


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

    @property
    def base(self) -> tuple[str, str | None]:
        """Name and revision of the base that its config names."""
        name, revision = self.config.get("base_model_name_or_path"), self.config.get("revision")
        if not isinstance(name, str) or not name:
            raise IntegrityError(f"The config of {self.name} names no base model.")
        return name, revision if isinstance(revision, str) else None


def check_settings(stored: StoredAdapter, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The handful of settings we know, typed, as arguments of LoraConfig.

    Anything else that differs from PEFT's `defaults` is refused: regexes, replicated layers, other modules.
    """
    where, config = f"The adapter {stored.name}", stored.config
    if config.get("peft_type") != "LORA":
        raise IntegrityError(f"{where}: only LoRA adapters can be read, not {config.get('peft_type')}.")
    for key, value in config.items():
        if key in _OURS | _IGNORED | {"peft_type"}:
            continue
        if value != defaults.get(key) and value not in _NO_WORDS:
            raise IntegrityError(f"{where}: {key} = {value!r} is not supported.")
    targets = config.get("target_modules")
    if not (isinstance(targets, list) and targets and all(isinstance(t, str) for t in targets)):
        raise IntegrityError(f"{where}: target_modules must be a list of names.")
    try:
        checked = AdapterSection(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            target_modules=tuple(targets),
        )
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{where} holds settings out of range: {error}") from error
    return {
        "r": checked.rank,
        "lora_alpha": checked.alpha,
        "lora_dropout": checked.dropout,
        "target_modules": list(checked.target_modules),
        "use_rslora": config.get("use_rslora") is True,
        "use_dora": config.get("use_dora") is True,
    }
