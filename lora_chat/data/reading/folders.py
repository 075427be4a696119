"""Choose the data files of a local folder: its splits, and files that are not data.

The rules follow those for data sets of the hub: the configs of a README.md, folders of `save_to_disk`, otherwise the
names of files and folders.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from lora_chat.data.reading.hub_splits import HubRepository, format_names
from lora_chat.data.reading.size_limits import MAX_FILES
from lora_chat.errors import DataError, LoraChatError
from lora_chat.system.bounded_files import read_json_object, read_text
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.strict_yaml import read_front_matter

CARD_NAME, MAX_CARD_BYTES = "README.md", 8_000_000
DEFAULT_SPLIT = "train"
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words in names of files and folders by which `datasets` recognises a split."""
_SHARD_NAME = re.compile(r"(?P<split>\w[\w.-]*?)-\d{5}-of-\d{5}\b")
_NO_DATA_NAME = re.compile(
    r"(readme|licen[cs]e|notice|citation|changelog|authors|copying)([._-]\w+)?(\.(md|txt|rst|cff))?"
    r"|dataset_(infos?|dict)\.json|state\.json|_success|thumbs\.db|desktop\.ini"
    r"|.*\.(md|rst|cff|bib|py|ipynb|sh|ya?ml|png|jpe?g|gif|svg|webp|pdf|html?|md5|sha\d+|lock|toml)",
    re.IGNORECASE,
)
"""Names of files beside data that are never dialogues."""
_FILE_ENDING = re.compile(
    r"\.(?P<kind>jsonl|ndjson|json|parquet|arrow|csv|tsv|txt)(\.(gz|bz2|xz|zst|zstd|zip))?$", re.IGNORECASE
)
_KIND_ORDER = ("jsonl", "ndjson", "parquet", "arrow", "json", "csv", "tsv")
_MAX_VISITED = 500_000
_MAX_SHOWN = 8


@dataclass(frozen=True)
class ChosenFiles:
    """The files of a folder that are read, in a fixed order."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    """Sentences on the chosen split and on files that are not used."""
    other_splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitChoice:
    """The split that a source wants from its folder."""

    split: str = DEFAULT_SPLIT
    """Name of the split; empty if the folder must have a single one."""
    subset: str | None = None
    is_default: bool = True
    """Whether the recipe names no split, so that a folder without splits is read completely."""


def choose_folder_files(folder: Path, choice: SplitChoice, *, plain_text: bool = False) -> ChosenFiles:
    """Return the files of a split of a folder, or all files of a folder without splits.

    Raises DataError with the valid choices; OSError for an unreadable folder. With `plain_text`, notes and other texts
    are data.
    """
    subset = choice.subset
    chosen = _choose_saved(folder, choice) or _choose_by_card(folder, choice)
    if chosen:
        return chosen
    if subset and Path(subset).name == subset and (folder / subset).is_dir():
        return choose_folder_files(folder / subset, replace(choice, subset=None), plain_text=plain_text)
    if subset:
        raise DataError(f"The folder {folder} has no subset {subset}.")
    own = [path for path in _list_folder(folder) if plain_text or not _NO_DATA_NAME.fullmatch(path.name)]
    return _choose_by_names(folder, own or _walk(folder, plain_text=plain_text), choice)


def _list_folder(folder: Path) -> list[Path]:
    """Return the own files of a folder, except hidden ones, sorted; raises DataError for more than MAX_FILES."""
    return collect_files(folder, (p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file()))


def collect_files(name: object, paths: Iterable[Path]) -> list[Path]:
    """Return paths sorted; raises DataError for more than MAX_FILES, under the name of their source."""
    files = list(islice(paths, MAX_FILES + 1))
    if len(files) > MAX_FILES:
        raise DataError(f"{name} matches more than {MAX_FILES:,} files. Fix: join them.")
    return sorted(files)


def _walk(folder: Path, *, plain_text: bool = False) -> list[Path]:
    """Return the data files below a folder, without hidden ones; links to folders are not followed."""
    files: list[Path] = []
    visited = 0
    for parent, folders, names in os.walk(folder):
        visited += len(folders) + len(names)
        if visited > _MAX_VISITED or len(files) > MAX_FILES:
            raise DataError(f"{folder} has too many files and folders below it. Fix: name the files.")
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        shown = (name for name in names if not name.startswith("."))
        paths = [Path(parent, name) for name in shown if plain_text or not _NO_DATA_NAME.fullmatch(name)]
        files += [path for path in paths if path.is_file()]
    return collect_files(folder, files)


def _choose_saved(folder: Path, choice: SplitChoice) -> ChosenFiles | None:
    """Return the Arrow files of a folder that `datasets.save_to_disk` wrote; None for another folder."""
    try:
        if (folder / "dataset_dict.json").is_file() and not _is_saved_dataset(folder):
            names = [str(name) for name in read_json_object(folder / "dataset_dict.json").get("splits") or ()]
            chosen = _pick_split(folder, names, choice)
            if Path(chosen).name != chosen or not (folder / chosen).is_dir():
                raise DataError(f"{folder} has no folder for its split {sanitize_line(chosen, 60)}.")
            files = _choose_saved(folder / chosen, SplitChoice())
            if files is None:
                raise DataError(f"{folder / chosen} is not a complete data set of save_to_disk: it has no state.json.")
            others = tuple(name for name in names if name != chosen)
            return ChosenFiles(files.paths, _split_notes(folder, chosen, {name: [] for name in others}), others)
        if not _is_saved_dataset(folder):
            return None
        state = read_json_object(folder / "state.json")
    except LoraChatError as error:
        raise error if isinstance(error, DataError) else DataError(str(error)) from error
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{folder} stores a selection of rows beside its data. Fix: save it again after flatten_indices()."
        )
    entries = state["_data_files"]
    names = [str(entry.get("filename")) if isinstance(entry, dict) else "" for entry in entries]
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing or not names:
        lost = sanitize_line(missing[0], 80) if missing else "data-00000-of-00001.arrow"
        raise DataError(f"The folder {folder} is incomplete: it has no file {lost}. Fix: copy all its files.")
    return ChosenFiles(tuple(folder / name for name in names[: MAX_FILES + 1]))


def _is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder has a state of `save_to_disk` that lists data files."""
    state = folder / "state.json"
    return state.is_file() and isinstance(read_json_object(state).get("_data_files"), list)


def _choose_by_card(folder: Path, choice: SplitChoice) -> ChosenFiles | None:
    """Return the files that the configs of a README.md name; None without configs."""
    card = _read_card_configs(folder)
    if not card:
        return None
    files = [path.relative_to(folder).as_posix() for path in _walk(folder)]
    split = choice.split or DEFAULT_SPLIT
    chosen, _ = HubRepository(str(folder), files, card).choose_files(split, choice.subset)
    others = sorted(set(files) - set(chosen))
    notes = [
        f"split {split} of {sanitize_line(folder.name)} is used, as its README.md names it; "
        f"not used: {format_names([sanitize_line(name) for name in others], _MAX_SHOWN)}"
    ]
    other_splits = tuple(dict.fromkeys(filter(None, (_split_of(Path(name)) for name in others))))
    return ChosenFiles(tuple(folder / name for name in chosen), tuple(notes if others else ()), other_splits)


def _read_card_configs(folder: Path) -> Mapping[str, object]:
    """Return the header of README.md if it names the files of splits, otherwise an empty mapping."""
    path = folder / CARD_NAME
    if not path.is_file():
        return {}
    try:
        card = read_front_matter(read_text(path, MAX_CARD_BYTES).removeprefix("\ufeff"))
    except (ValueError, LoraChatError):  # any text file may have this name
        return {}
    configs = card.get("configs")
    has_files = isinstance(configs, list) and any(isinstance(c, dict) and c.get("data_files") for c in configs)
    return card if has_files else {}


def _choose_by_names(folder: Path, files: Sequence[Path], choice: SplitChoice) -> ChosenFiles:
    """Return the files of a split by the names of files and folders, or all if there is only one kind of name."""
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(_split_of(path.relative_to(folder)) or "", []).append(path)
    names = [name for name in groups if name]
    if len(groups) <= 1 and (choice.is_default or choice.split in names):
        return ChosenFiles(tuple(files))
    is_beside_splits = choice == SplitChoice() and DEFAULT_SPLIT not in groups and "" in groups
    chosen = "" if is_beside_splits else _pick_split(folder, names, choice)
    others = {name: paths for name, paths in groups.items() if name != chosen}
    paths, doubles = _keep_one_kind(groups[chosen])
    notes = [*_split_notes(folder, chosen, others)]
    if doubles:
        notes.append(f"not used, because the same name exists in another format: {_format_paths(doubles, folder)}")
    return ChosenFiles(tuple(paths), tuple(notes), tuple(name for name in others if name))


def _split_of(path: Path) -> str | None:
    """Return the split that a relative path belongs to, by its last part that names one."""
    shard = _SHARD_NAME.match(path.name)
    if shard:
        return _SPLIT_WORDS.get(shard["split"].lower(), shard["split"])
    for part in reversed(path.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return None


def _pick_split(folder: Path, names: Collection[str], choice: SplitChoice) -> str:
    """Return the name of the wanted split; raises DataError with the valid choices."""
    same = [name for name in names if _SPLIT_WORDS.get(name.lower(), name) == choice.split]
    if choice.split in names or len(same) == 1:
        return choice.split if choice.split in names else same[0]
    has = f"has no split {choice.split}; its splits" if choice.split else "has several splits"
    example = next(iter(names), DEFAULT_SPLIT)
    raise DataError(
        f"The folder {folder} {has}: {format_names([*names], _MAX_SHOWN) or 'none'}.\n"
        f"Fix: name one, as in {{path: {folder}, split: {example}}}, or name its files."
    )


def _split_notes(folder: Path, chosen: str, others: Mapping[str, Sequence[Path]]) -> tuple[str, ...]:
    """Return the sentence on the chosen split and on the others; none without others."""
    parts = [
        f"{name or 'files of no split'}" + (f" ({_format_paths(paths, folder)})" if paths else "")
        for name, paths in others.items()
    ]
    title = f"split {chosen}" if chosen else "files of no split"
    return (f"{title} of {sanitize_line(folder.name)} is used; not used: {', '.join(parts)}",) if others else ()


def _keep_one_kind(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the files, and those with the same name as another one in a preferred format."""
    best: dict[str, Path] = {}
    for path in paths:
        name = _FILE_ENDING.sub("", str(path))
        if name not in best or _kind_rank(path) < _kind_rank(best[name]):
            best[name] = path
    used = set(best.values())
    return [path for path in paths if path in used], [path for path in paths if path not in used]


def _kind_rank(path: Path) -> int:
    """Return the rank of a file's format, the lowest for the preferred one."""
    match = _FILE_ENDING.search(path.name)
    kind = match["kind"].lower() if match else ""
    return _KIND_ORDER.index(kind) if kind in _KIND_ORDER else len(_KIND_ORDER)


def _format_paths(paths: Sequence[Path], folder: Path) -> str:
    """Format the first paths relative to their folder."""
    return format_names([sanitize_line(str(path.relative_to(folder))) for path in paths], _MAX_SHOWN)
