"""Expand the globs of recipes, which may be untrusted, within limits; unreadable folders are skipped."""

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from lora_chat.errors import DataError

_MAX_ENTRIES = 500_000
"""Most files and folders that one glob visits; a disk has millions."""
_MAX_PARTS = 40


def expand_glob(pattern: Path) -> Iterator[Path]:
    """Yield the files that match a pattern, some of them twice; `**` follows no links to folders.

    Raises DataError for a pattern that visits too many folders.
    """
    groups = [(part, len(list(same))) for part, same in groupby(pattern.parts)]
    parts = [part for part, count in groups for _ in range(1 if part == "**" else count)]
    if len(parts) > _MAX_PARTS:
        raise DataError(f"{pattern} has more than {_MAX_PARTS} parts.")
    anchored = bool(pattern.anchor)
    return _GlobWalker(pattern).match_in(Path(pattern.anchor), parts[anchored:])


class _GlobWalker:
    """A walk along one pattern that counts the entries it visits."""

    def __init__(self, pattern: Path) -> None:
        self._pattern = pattern
        self._remaining_entries = _MAX_ENTRIES

    def match_in(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Yield the files in a folder that match the rest of the pattern."""
        first, rest = parts[0], parts[1:]
        if first == "**":
            yield from self._match_recursively(folder, rest)
        elif not glob.has_magic(first):
            yield from self._match_rest(folder / first, rest)
        else:
            name = re.compile(fnmatch.translate(os.path.normcase(first)))
            for entry in self._entries(folder):
                if name.match(os.path.normcase(entry.name)):
                    yield from self._match_rest(folder / entry.name, rest)

    def _match_recursively(self, folder: Path, rest: Sequence[str]) -> Iterator[Path]:
        """Yield the matching files in a folder and all folders below it."""
        pending = [folder]
        while pending:
            current = pending.pop()
            if rest:
                yield from self.match_in(current, rest)
            subfolders = [entry for entry in self._entries(current) if entry.is_dir(follow_symlinks=False)]
            pending += [current / entry.name for entry in subfolders]

    def _match_rest(self, path: Path, rest: Sequence[str]) -> Iterator[Path]:
        if rest:
            yield from self.match_in(path, rest)
        elif os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for paths without permission
            yield path

    def _entries(self, folder: Path) -> Iterator["os.DirEntry[str]"]:
        """Yield the entries of a folder; none if it cannot be read."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._remaining_entries -= 1
                    if self._remaining_entries < 0:
                        raise DataError(
                            f"{self._pattern} visits more than {_MAX_ENTRIES:,} files and folders. "
                            "Fix: name the folder that contains the data."
                        )
                    yield entry
        except OSError:  # not a folder, no permission, or deleted
            return
