"""SHA-256 of files, texts and Python code."""

import hashlib
from pathlib import Path


def digest_file(path: Path) -> str:
    """Return the sha256 of a file, as hexadecimal digits. Raise OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def digest_text(text: str) -> str:
    """Return the sha256 of a text in UTF-8, as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_code(*sources: Path) -> str:
    """Return the sha256 of files and of all files in folders, including data files of the package.

    It is part of cache keys, so that results of other versions of the code are not used.
    """
    digest = hashlib.sha256()
    for source in sources:
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file() and "__pycache__" not in path.relative_to(source).parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()
