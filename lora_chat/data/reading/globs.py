"""Globs of recipes, which strangers write: bounded in what they walk through; what cannot be read is passed over."""

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from lora_chat.errors import DataError

_MAX_ENTRIES = 500_000
"""Files and folders that one glob looks at; a disk has millions."""
_MAX_PARTS = 40


def expand_glob(pattern: Path) -> Iterator[Path]:
    """Yield the files that a pattern leads to, some perhaps twice; behind `**` no link to a folder is followed.

    Raises DataError for a pattern that walks through too much.
    """
    groups = [(part, len(list(same))) for part, same in groupby(pattern.parts)]
    parts = [part for part, count in groups for _ in range(1 if part == "**" else count)]
    if len(parts) > _MAX_PARTS:
        raise DataError(f"{pattern} has more than {_MAX_PARTS} parts.")
    anchored = bool(pattern.anchor)
    return _GlobWalker(pattern).match_in(Path(pattern.anchor), parts[anchored:])


class _GlobWalker:
    """The entries that are looked at, counted."""

    def __init__(self, pattern: Path) -> None:
        self._pattern = pattern
        self._remaining_entries = _MAX_ENTRIES

    def match_in(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Yield the files in a folder that the rest of the pattern leads to."""
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
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            if rest:
                yield from self.match_in(place, rest)
            inside = [entry for entry in self._entries(place) if entry.is_dir(follow_symlinks=False)]
            waiting += [place / entry.name for entry in inside]

    def _match_rest(self, path: Path, rest: Sequence[str]) -> Iterator[Path]:
        if rest:
            yield from self.match_in(path, rest)
        elif os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for places that may not be looked at
            yield path

    def _entries(self, folder: Path) -> Iterator["os.DirEntry[str]"]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._remaining_entries -= 1
                    if self._remaining_entries < 0:
                        raise DataError(
                            f"{self._pattern} leads through more than {_MAX_ENTRIES:,} files and folders. "
                            "Name the folder that holds the data."
                        )
                    yield entry
        except OSError:  # not a folder, not ours to read, or gone
            return
