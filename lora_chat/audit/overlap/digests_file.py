"""The file of training digests in a run folder. A run may be a stranger's, so its file is checked when it is read."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lora_chat.audit.overlap.digest_set import DIGEST_BITS, MAX_DIGESTS, DigestSet, is_sampled
from lora_chat.audit.overlap.training_digests import MAX_SIGNATURES, SIGNATURE_BYTES, TrainingDigests
from lora_chat.errors import IntegrityError
from lora_chat.system.bounded_files import read_bytes

MAX_DIGESTS_BYTES = 110_000_000
"""Largest file of digests, in bytes."""
_VERSION = 1
_SETS = ("turns", "questions", "replies", "passages")


def encode_digests(digests: TrainingDigests) -> bytes:
    """Return the content of the file."""
    arrays: dict[str, NDArray[np.generic]] = {name: getattr(digests, name).values for name in _SETS}
    arrays["signatures"] = np.ascontiguousarray(digests.signatures)
    arrays["format"] = np.array([_VERSION, *(getattr(digests, name).shift for name in _SETS)], np.uint8)
    return save(arrays)


def read_digests(path: Path) -> TrainingDigests | None:
    """Return the digests in a file; None if it does not exist. Raises IntegrityError if it is damaged."""
    if not path.exists():
        return None
    try:
        return decode_digests(read_bytes(path, MAX_DIGESTS_BYTES))
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise IntegrityError(f"{path} is damaged: it has no digests that `sft` writes.") from error


def decode_digests(content: bytes) -> TrainingDigests:
    """Return the digests in the content of a file. Raises ValueError and others for a damaged one."""
    arrays: dict[str, NDArray[np.generic]] = load(content)
    version, *shifts = _check_array(arrays, "format", np.uint8, (len(_SETS) + 1,)).tolist()
    if version != _VERSION:
        raise ValueError(f"has version {version}")
    sets = {}
    for name, shift in zip(_SETS, shifts, strict=True):
        values = _check_array(arrays, name, np.uint64, (min(arrays[name].size, MAX_DIGESTS),)).astype(np.uint64)
        if shift >= DIGEST_BITS or not is_sampled(values, shift).all() or not (values[1:] > values[:-1]).all():
            raise ValueError(f"{name} is not sorted or not a sample")
        sets[name] = DigestSet(values, shift)
    rows = min(arrays["signatures"].size // SIGNATURE_BYTES, MAX_SIGNATURES)
    signatures = _check_array(arrays, "signatures", np.uint8, (rows, SIGNATURE_BYTES)).astype(np.uint8)
    return TrainingDigests(**sets, signatures=signatures)


def _check_array(
    arrays: dict[str, NDArray[np.generic]], name: str, dtype: type, shape: tuple[int, ...]
) -> NDArray[np.generic]:
    """Return an array of this type and shape. Raises ValueError for any other."""
    array = arrays[name]
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} has another type or shape")
    return array
