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


def digest_code(folder: Path) -> str:
    """Of the Python files in a folder: what other code has made is not taken for ours."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
