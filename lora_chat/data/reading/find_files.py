"""Find the files of names, folders and globs."""

import glob
from pathlib import Path

from lora_chat.data.reading.folders import ChosenFiles, SplitChoice, choose_folder_files, collect_files
from lora_chat.data.reading.globs import expand_glob
from lora_chat.data.reading.missing_paths import explain_missing_path
from lora_chat.data.reading.raw_row import is_valid_utf8
from lora_chat.errors import DataError

_MAX_SHOWN_NAME_CHARACTERS = 300


def find_files(names: str | tuple[str, ...]) -> tuple[Path, ...]:
    """Return the files of names, folders and globs, in a fixed order, none twice; `choose_files` explains the rules."""
    return choose_files(names).paths


def choose_files(
    names: str | tuple[str, ...], choice: SplitChoice | None = None, *, plain_text: bool = False
) -> ChosenFiles:
    """Return the files of names, folders (one split of each) and globs, in a fixed order, none twice.

    Raises DataError for a name without a file, for a folder without the split, or with more than MAX_FILES.
    """
    files: dict[Path, None] = {}
    notes: list[str] = []
    other_splits: dict[str, None] = {}
    for name in (names,) if isinstance(names, str) else names:
        try:
            chosen = _list_files(name, choice or SplitChoice(), plain_text)
        except OSError as error:  # a name that is too long, a folder that may not be read
            raise DataError(f"Cannot read {name[:_MAX_SHOWN_NAME_CHARACTERS]}: {error.strerror or error}.") from error
        if not chosen.paths:
            raise DataError(f"There is no file in {name}.")
        files |= dict.fromkeys(chosen.paths)
        notes += chosen.notes
        other_splits |= dict.fromkeys(chosen.other_splits)
    for path in files:
        if not is_valid_utf8(str(path)):
            raise DataError(f"The name of {str(path)!a} is not UTF-8 text. Fix: rename the file.")
    return ChosenFiles(tuple(files), tuple(dict.fromkeys(notes)), tuple(other_splits))


def _list_files(name: str, choice: SplitChoice, plain_text: bool) -> ChosenFiles:
    """Return the files of one name; raises DataError if nothing has this name."""
    path = Path(name)
    if path.is_dir():
        return choose_folder_files(path, choice, plain_text=plain_text)
    if path.exists():
        return ChosenFiles((path,))
    if glob.has_magic(name):
        return ChosenFiles(tuple(collect_files(name, dict.fromkeys(expand_glob(path)))))
    raise DataError(f"There is no file {path}.{explain_missing_path(path)}")
