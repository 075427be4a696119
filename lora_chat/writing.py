"""Files and folders that are there whole or not at all: written beside, then renamed."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_chat.errors import explain_write_errors


@contextmanager
def folder_written_whole(to: Path, what: str) -> Iterator[Path]:
    """A new folder beside `to` that takes its place when the block ends well, and vanishes otherwise.

    A folder that stood there is replaced. Raises SpaceError or RecipeError when it cannot be written.
    """
    with explain_write_errors(to, what):
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
        try:
            inside = beside / to.name  # made by us: mkdtemp's own folder is closed to everyone else
            inside.mkdir()
            yield inside
            if to.exists():
                to.rename(beside / "old")
            inside.rename(to)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def write_text_whole(path: Path, text: str, what: str) -> None:
    """Write a text file so that readers see the old one or the new one."""
    with file_written_whole(path, what) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def file_written_whole(path: Path, what: str) -> Iterator[Path]:
    """A path beside `path` whose file takes its place when the block ends well."""
    with explain_write_errors(path, what):
        beside = path.with_name(f".{path.name}.part")
        try:
            yield beside
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
