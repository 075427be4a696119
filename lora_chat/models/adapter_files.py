"""Write an adapter as a folder in PEFT's layout, and read such a folder."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import DiskError, IntegrityError
from lora_chat.models.adapter import adapter_weights, write_peft_adapter
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.foreign.chat_template import read_template_beside
from lora_chat.models.foreign.weights_file import find_foreign_weights
from lora_chat.models.identity import Identity
from lora_chat.system.atomic_write import atomic_folder
from lora_chat.system.bounded_files import read_json_object, read_text
from lora_chat.system.received_folder import check_received_folder
from lora_chat.system.safetensors_header import TensorHeader, check_safetensors_header, read_tensor_headers

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

WEIGHTS_NAME, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
IDENTITY_NAME = "lora_chat.json"
TEMPLATE_NAME = "chat_template.jinja"
MODEL_CARD_NAME = "README.md"


def save_adapter(
    model: "PeftModel",
    folder: Path,
    identity: Identity,
    chat_template: str,
    card: str,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> int:
    """Write the adapter in PEFT's layout, completely or not at all, and return its size in bytes.

    A tokenizer with new tokens is written too, for other programs; lora_chat adds the tokens to the base's.

    Raises DiskFullError, DiskError or UsageError if the folder cannot be written, DiskError if the written file has
    other values.
    """
    with atomic_folder(folder, "the adapter") as beside:
        if tokenizer is not None and identity.new_tokens:
            tokenizer.save_pretrained(beside)
        write_peft_adapter(model, beside)
        _check_saved_weights(model, beside)
        config = json.loads((beside / CONFIG_NAME).read_text())
        for key in ("target_modules", "target_parameters"):  # sets in PEFT, so their order differs between runs
            config[key] = sorted(config[key]) if isinstance(config.get(key), list) else config.get(key)
        config["base_model_name_or_path"] = identity.base
        config["revision"] = identity.revision
        (beside / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (beside / IDENTITY_NAME).write_text(identity.model_dump_json(indent=2) + "\n")
        (beside / TEMPLATE_NAME).write_text(chat_template, encoding="utf-8")
        (beside / MODEL_CARD_NAME).write_text(card, encoding="utf-8")
        size = sum(path.stat().st_size for path in beside.iterdir())
    return size


def is_adapter_folder(folder: Path) -> bool:
    """Return whether a folder has an adapter's config, which may be a link and is then refused later."""
    return os.path.lexists(folder / CONFIG_NAME)


def read_adapter(folder: Path, name: str | None = None) -> StoredAdapter:
    """Read an adapter's folder except for its weights; use `name` in messages.

    Raises IntegrityError for a damaged, linked or special file.
    """
    check_received_folder(folder)
    identity, config = read_identity(folder), _read_config(folder / CONFIG_NAME)
    weights = folder / WEIGHTS_NAME if identity else find_foreign_weights(folder, config)
    return StoredAdapter(
        name=name or str(folder),
        config=config,
        read_weights=lambda: _read_weights(weights),
        read_headers=lambda: _read_headers(weights),
        identity=identity,
        template=_read_own_template(folder) if identity else read_template_beside(folder),
        folder=None if identity else folder,
        size=weights.stat().st_size if weights.exists() else 0,
    )


def read_identity(folder: Path) -> Identity | None:
    """Return the identity that was saved with an adapter; None for an adapter of another tool."""
    path = folder / IDENTITY_NAME
    if not path.exists():
        return None
    try:
        return Identity.model_validate_json(read_text(path))
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error


def _read_own_template(folder: Path) -> str | None:
    """Return the template that lora_chat saved with an adapter."""
    path = folder / TEMPLATE_NAME
    return read_text(path) if path.exists() else None


def _read_config(path: Path) -> dict[str, object]:
    """Read an adapter_config.json. Raises IntegrityError."""
    try:
        config: dict[str, object] = read_json_object(path, strict=True)
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    return config


def _read_weights(path: Path) -> "dict[str, torch.Tensor]":
    """Read all tensors of a safetensors file. Raises IntegrityError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        check_safetensors_header(path)
        return load_file(path)
    except (OSError, SafetensorError, IntegrityError) as error:
        raise IntegrityError(f"The adapter's weights {path} cannot be read: {error}") from error


def _read_headers(path: Path) -> Mapping[str, TensorHeader]:
    """Read names and shapes of all tensors of a safetensors file. Raises IntegrityError."""
    try:
        return read_tensor_headers(path)
    except (OSError, IntegrityError) as error:
        raise IntegrityError(f"The adapter's weights {path} cannot be read: {error}") from error


def _check_saved_weights(model: "PeftModel", folder: Path) -> None:
    """Raise DiskError if the written file does not have the model's weights."""
    expected = adapter_weights(model)
    try:
        written = _read_weights(folder / WEIGHTS_NAME)
    except IntegrityError:
        written = {}
    same = expected.keys() == written.keys() and all(
        written[name].equal(w.detach().cpu()) for name, w in expected.items()
    )
    if not same:
        raise DiskError(
            f"{folder / WEIGHTS_NAME} does not have the values that were written; it was deleted.\n"
            "The disk or its file system may be failing. Fix: copy the run to another disk and use --resume RUN."
        )
