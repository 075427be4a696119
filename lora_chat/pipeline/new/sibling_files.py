"""The validation and test data beside training data, by the names of files or the splits of a folder."""

import re
from collections.abc import Mapping
from pathlib import Path

from lora_chat.data.reading.folders import SplitChoice, choose_folder_files
from lora_chat.errors import DataError

HELD_OUT_WORDS: Mapping[str, tuple[str, ...]] = {
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Words in the names of files, by the setting of `data` that names them."""
_TRAIN_WORD = re.compile(r"(?<![a-z])(train|training)(?![a-z])", re.IGNORECASE)


def find_held_out_files(train: str) -> dict[str, str]:
    """Return the validation and test data that belong to training data, by setting.

    They are `test.jsonl` beside `train.jsonl`, `x-test.jsonl` beside `x.jsonl`, or other splits of the same folder.
    """
    path = Path(train)
    if path.is_dir():
        try:
            splits = choose_folder_files(path, SplitChoice()).other_splits
        except (OSError, DataError):
            return {}
        return {name: train for name in HELD_OUT_WORDS if name in splits}
    if not path.is_file():
        return {}
    ending = "".join(path.suffixes)
    stem = path.name.removesuffix(ending)
    files = {}
    for setting, words in HELD_OUT_WORDS.items():
        names = [f"{stem}{sign}{word}" for word in words for sign in "-_."]
        if _TRAIN_WORD.search(stem):
            names += [_TRAIN_WORD.sub(word, stem) for word in words]
        candidates = (path.with_name(name + ending) for name in names)
        file = next((candidate for candidate in candidates if candidate.is_file() and candidate != path), None)
        if file is not None:
            files[setting] = str(file)
    return files
