"""Read the weights of a parcel from memory, and check their names, shapes and values against the config."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_chat.config.lora_variants import EXTRA_VECTORS
from lora_chat.errors import IntegrityError
from lora_chat.models.adapter_checks import ALLOWED_DTYPES
from lora_chat.models.adapter_config import EMBEDDING_ROWS, LoraSettings
from lora_chat.sharing.expert_tensors import check_expert_owners, check_expert_pair, list_owned_experts
from lora_chat.system.safetensors_header import MAX_HEADER_BYTES, check_raw_header

if TYPE_CHECKING:
    import torch

_ROWS_KEY_PATTERN = re.compile(r"base_model\.model\.([A-Za-z0-9_.]{1,300})\.token_adapter\.trainable_tokens_delta")
_MODULE_KEY_PATTERN = re.compile(r"base_model\.model\.([A-Za-z0-9_.]{1,300})\.(weight|bias)")
_LORA_KEY_PATTERN = re.compile(
    r"base_model\.model\.([A-Za-z0-9_.]{1,300})\."
    rf"(lora_A\.weight|lora_B\.weight|base_layer\.bias|{'|'.join(EXTRA_VECTORS)})"
)


_BIAS = "base_layer"
"""Part of a layer that is a bias of the base."""


def read_tensors(raw: bytes) -> "dict[str, torch.Tensor]":
    """Read tensors from the bytes of a safetensors file.

    Raises IntegrityError if the file is invalid; safetensors itself refuses gaps and overlaps.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > min(MAX_HEADER_BYTES, len(raw) - 8):
        raise IntegrityError("the weights are not a safetensors file: the header is longer than the file or the limit")
    try:
        check_raw_header(raw[8 : 8 + length], len(raw) - 8 - length)
        return load(raw)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise IntegrityError(f"the weights cannot be read: {str(error)[:200]}") from error


def check_tensors(tensors: "Mapping[str, torch.Tensor]", settings: LoraSettings) -> int:
    """Check that the tensors are complete LoRA pairs of the rank and modules in `settings`; count their parameters.

    Beside them, only the modules and rows that the settings name may be replaced. Whether the tensors fit the base
    is checked elsewhere, because this function has no base. Raises IntegrityError.
    """
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _LORA_KEY_PATTERN.fullmatch(key)
        if not match and _is_replaced_part(key, tensor, settings):
            _check_values(key, tensor)
            continue
        if not match:
            raise IntegrityError(f"the weights contain {key[:200]!a}, which is not the name of a LoRA weight")
        module, part = match[1], match[2].split(".")[0]
        if not _is_target(module, settings) and not list_owned_experts(module, settings):
            raise IntegrityError(f"the weights contain {key[:200]!a}, which is not a target module of the config")
        _check_values(key, tensor)
        modules.setdefault(module, {})[part] = tensor
    if not modules:
        raise IntegrityError("the weights are empty")
    for module, parts in modules.items():
        if _is_target(module, settings):
            _check_pair(module, parts, settings)
        else:
            check_expert_pair(module, parts, settings)
    check_expert_owners([module for module in modules if not _is_target(module, settings)], settings)
    unused = [target for target in settings.target_modules if not any(_is_named(m, target) for m in modules)]
    unused += _list_missing_parts(tensors, settings)
    if unused:
        raise IntegrityError(f"the config names {unused[0][:100]!a}, for which there are no weights")
    return sum(tensor.numel() for tensor in tensors.values())


def _check_values(key: str, tensor: "torch.Tensor") -> None:
    """Raise IntegrityError for a tensor of another dtype, or with non-finite values."""
    import torch

    if str(tensor.dtype) not in ALLOWED_DTYPES:
        raise IntegrityError(f"{key} is {tensor.dtype}, not floating point of 16 or 32 bits")
    if not torch.isfinite(tensor).all():
        raise IntegrityError(f"{key} has non-finite values")


def _is_replaced_part(key: str, tensor: "torch.Tensor", settings: LoraSettings) -> bool:
    """Return whether a tensor replaces a module or rows that the settings name, in a possible shape."""
    if rows := _ROWS_KEY_PATTERN.fullmatch(key):
        sizes = [len(ids) for name, ids in settings.token_rows if name == EMBEDDING_ROWS or _is_named(rows[1], name)]
        return tensor.dim() == 2 and tensor.shape[0] in sizes
    part = _MODULE_KEY_PATTERN.fullmatch(key)
    if part is None or not (1 <= tensor.dim() <= 2):
        return False
    # PEFT saves the head under its own name if it shares the weights of the embedding.
    return settings.ties_weights or any(_is_named(part[1], name) for name in settings.modules_to_save)


def _is_target(module: str, settings: LoraSettings) -> bool:
    """Return whether a module is one of the target modules."""
    return any(_is_named(module, target) for target in settings.target_modules)


def _list_missing_parts(tensors: "Mapping[str, torch.Tensor]", settings: LoraSettings) -> list[str]:
    """Return the modules and rows that the settings name and that have no tensors."""
    rows = [match[1] for match in map(_ROWS_KEY_PATTERN.fullmatch, tensors) if match]
    modules = [match[1] for match in map(_MODULE_KEY_PATTERN.fullmatch, tensors) if match]
    wanted_rows = [name for name, _ in settings.token_rows]
    missing = [name for name in wanted_rows if not any(name == EMBEDDING_ROWS or _is_named(row, name) for row in rows)]
    return missing + [name for name in settings.modules_to_save if not any(_is_named(m, name) for m in modules)]


def _is_named(module: str, name: str) -> bool:
    """Return whether a module's full name is a name or ends with it."""
    return module == name or module.endswith(f".{name}")


def _check_pair(module: str, parts: "Mapping[str, torch.Tensor]", settings: LoraSettings) -> None:
    """Raise IntegrityError unless the parts of one module are a complete LoRA pair of the right rank and types."""
    expected = {"lora_A", "lora_B"}.union(*(variant.extra_vectors for variant in settings.special_variants))
    if settings.bias != "none" and _BIAS in parts:  # whether the layer has a bias is compared with the base later
        expected.add(_BIAS)
    if parts.keys() != expected:
        unexpected = sorted(parts.keys() ^ expected)[0]
        raise IntegrityError(f"{module}: {unexpected} is {'missing' if unexpected in expected else 'not expected'}")
    if parts["lora_A"].dtype != parts["lora_B"].dtype:
        raise IntegrityError(f"{module}: its two weights are {parts['lora_A'].dtype} and {parts['lora_B'].dtype}")
    lora_a, lora_b, rank = parts["lora_A"], parts["lora_B"], settings.rank_of(module)
    if lora_a.dim() != 2 or lora_b.dim() != 2 or lora_a.shape[0] != rank or lora_b.shape[1] != rank:
        raise IntegrityError(
            f"{module}: the shapes {tuple(lora_a.shape)} and {tuple(lora_b.shape)} are not a LoRA of rank {rank}"
        )
    for name in expected - {"lora_A", "lora_B"}:
        if tuple(parts[name].shape) != (lora_b.shape[0],):
            raise IntegrityError(f"{module}: the shape {tuple(parts[name].shape)} of {name} does not fit the weights")
