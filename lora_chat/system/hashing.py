"""sha256 of files and of our own code."""

import hashlib
from pathlib import Path


def digest_file(path: Path) -> str:
    """Of a file's bytes, as hexadecimal digits; raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def digest_text(text: str) -> str:
    """Return the sha256 of a text in UTF-8, as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_code(*places: Path) -> str:
    """Return the sha256 of files and of all files in folders, data files of the package included.

    It is part of cache keys, so that results of other code are not used.
    """
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and "__pycache__" not in path.relative_to(place).parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()
