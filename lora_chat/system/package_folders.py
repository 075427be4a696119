"""Folders with files of lora_chat that are not code: in the package of a wheel, beside it in a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def find_package_folder(name: str) -> Path:
    """Return the folder `recipes` or `docs`."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
