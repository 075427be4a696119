"""Weights of a base that are not what was downloaded or written."""

import re
from pathlib import Path

from lora_chat.errors import IntegrityError
from lora_chat.system.bounded_files import read_json
from lora_chat.system.safetensors_header import check_safetensors_header

DIGESTS_NAME = "sha256.json"
"""Beside weights that we wrote ourselves: their digests, by name."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_safetensors_file(path: Path) -> None:
    """Raise IntegrityError unless a safetensors file is as long as its header says; reads the header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        check_safetensors_header(path)
        with safe_open(path, framework="pt"):
            pass
    except (OSError, SafetensorError, IntegrityError) as error:
        raise IntegrityError(f"{path} is damaged: {error}.\n{_format_fix(path)}") from error


def check_digest(path: Path, digest: str) -> None:
    """Raise IntegrityError if it is known what a file's sha256 should be, and it is another."""
    expected = _expected_digest(path)
    if expected and expected != digest:
        raise IntegrityError(
            f"{path} is damaged: its sha256 is {digest[:16]}..., not {expected[:16]}...\n{_format_fix(path)}"
        )


def _expected_digest(path: Path) -> str | None:
    """What we noted when we wrote it; in the hub's cache, a large file's name is its digest."""
    blob = path.resolve().name
    if path.is_symlink() and _SHA256.fullmatch(blob):
        return blob
    try:
        return str(read_json(path.parent / DIGESTS_NAME)[path.name])
    except (OSError, IntegrityError, KeyError, TypeError):
        return None


def _format_fix(path: Path) -> str:
    if path.is_symlink():
        return f"Delete {path.resolve()} and start again: it is downloaded once more."
    if (path.parent / DIGESTS_NAME).is_file():
        return f"Delete {path.parent} and start again: it is written once more."
    return "Copy or download it again."
