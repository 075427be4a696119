"""Which files of a repository on the hub are a split of its data set.

The rules of the library `datasets` say so: the card's configs, else the files' names. Its own functions match the
patterns, on empty files in memory, so that nothing is requested and no code runs.
"""

import glob
import math
import posixpath
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lora_chat.errors import DataError
from lora_chat.system.sanitize import sanitize_line

_SUPPORTED_FILE = re.compile(r"\.(parquet|(jsonl?|ndjson|csv|tsv|txt)(\.gz)?)$", re.IGNORECASE)
_UNSUPPORTED_FILE = re.compile(r"\.(zip|zst|zstd|gz|tgz|xz|bz2|lz4|7z|tar|arrow)$", re.IGNORECASE)
_KIND_PATTERNS = {"json": r"\.(jsonl?|ndjson)\b", "csv": r"\.[ct]sv\b", "parquet": r"\.parquet$", "text": r"\.txt\b"}
_CONVERTED_FILE = re.compile(r"([^/]+)/([^/]+)/\d{4}\.parquet")
_MAX_MATCH_COST, _LITERAL_COST = 100_000_000, 1_000
"""Steps of matching all patterns of a split, about 20 s; and of one pattern without wildcards."""
_PARQUET_HINT = "Where the hub offers the data set converted to Parquet, this reads it: revision: refs/convert/parquet"


@dataclass(frozen=True)
class HubRepository:
    """What a repository holds, and what its card says."""

    name: str
    files: Collection[str]
    card: Mapping[str, Any]

    def choose_files(self, split: str, subset: str | None) -> tuple[list[str], list[str]]:
        """The files of a split, and those of other kinds left out; raises DataError with what there is instead."""
        data = [file for file in self.files if _SUPPORTED_FILE.search(file) or _UNSUPPORTED_FILE.search(file)]
        own_script = f"{self.name.split('/')[-1]}.py" in self.files and not self.card.get("configs")
        if own_script or (not data and any(file.endswith(".py") for file in self.files)):
            raise DataError(f"The data set {self.name} is made by a script, which is never run.\n{_PARQUET_HINT}")
        try:
            config = self._choose_config(data, subset)
            with _mirror_in_memory(data) as root:
                found = self._match_files(root, config, split)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise DataError(f"The splits of the data set {self.name} cannot be told apart: {reason}") from error
        other = [file for file in found if not _SUPPORTED_FILE.search(file)]
        if other or not found:
            has = f"has {format_names(other, 3)}: archives and .arrow are not read" if other else "has no data files"
            raise DataError(
                f"The split {split} of {self.name} {has}.\n"
                f"Read are .parquet, .json, .jsonl, .csv, .tsv and .txt, all but the first also as .gz. {_PARQUET_HINT}"
            )
        return (found, []) if config.get("data_files") is not None else _keep_one_kind(found)

    def _choose_config(self, data: Collection[str], subset: str | None) -> Mapping[str, Any]:
        """What the card says of the subset: its data_files, its data_dir, or nothing."""
        from datasets.utils.metadata import MetadataConfigs

        configs = MetadataConfigs.from_dataset_card_data(self.card) or MetadataConfigs({"default": {}})
        converted = [_CONVERTED_FILE.fullmatch(file) for file in sorted(data)]
        if "README.md" not in self.files and data and all(converted):
            # The hub's own conversion has no card, but a folder for each subset, in it one for each split.
            folders: dict[str, dict[str, list[str]]] = {}
            for match in filter(None, converted):
                folders.setdefault(match[1], {}).setdefault(match[2], []).append(match[0])
            configs = MetadataConfigs({folder: {"data_files": splits} for folder, splits in folders.items()})
        chosen = subset or configs.get_default_config_name()
        if chosen not in configs:
            fault = f"has no subset {subset}" if subset else "has several subsets, name one"
            raise DataError(f"The data set {self.name} {fault}.\nIts subsets: {format_names(configs)}")
        return dict(configs[chosen])

    def _match_files(self, root: str, config: Mapping[str, Any], split: str) -> list[str]:
        from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern, sanitize_patterns

        base = f"{root}/{self._check_inside(config.get('data_dir') or '.')}".removesuffix("/.")
        given = config.get("data_files")
        try:
            patterns = get_data_patterns(base) if given is None else sanitize_patterns(given)
        except EmptyDatasetError:
            return []
        if split not in patterns:
            raise DataError(f"The data set {self.name} has no split {split}.\nIts splits: {format_names(patterns)}")
        self._check_cost(patterns[split])
        found: dict[str, None] = {}  # a file that two patterns match is read once
        for pattern in patterns[split]:
            try:
                matched = resolve_pattern(self._check_inside(pattern), base)
            except FileNotFoundError as error:
                if glob.has_magic(pattern):
                    continue
                raise DataError(f"The card of {self.name} names {pattern}, which is not there or not data.") from error
            found |= dict.fromkeys(file.partition(f"{root.removeprefix('memory:/')}/")[2] for file in matched)
        return list(found)

    def _check_cost(self, patterns: Collection[str]) -> None:
        """Raise DataError for patterns whose matching would take minutes: it tries all ways to divide a name."""
        cost = 0
        for pattern in patterns:
            cost += _LITERAL_COST
            fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
            if fixed == pattern:
                continue
            whole, some = pattern.count("**"), max(part.replace("**", "").count("*") for part in pattern.split("/"))
            for file in self.files:
                if file.startswith(fixed.removeprefix("./")):
                    parts = file.split("/")
                    longest = max(map(len, parts))
                    cost += math.comb(len(parts) + whole, whole) * math.comb(longest + some, some)
            if cost > _MAX_MATCH_COST:
                raise DataError(
                    f"The card of {self.name} has the pattern {sanitize_line(pattern, 80)}, which would take "
                    f"minutes to "
                    "match.\nName the files themselves, from a local copy."
                )

    def _check_inside(self, path: str) -> str:
        """A path or pattern of the card, unless it leads out of the repository: to this machine, or to anywhere."""
        clean = posixpath.normpath(path)
        if "::" in path or ":/" in path or clean.startswith(("/", "..")):
            raise DataError(f"The card of {self.name} names {path}, outside of the repository: that is never read.")
        return clean


@contextmanager
def _mirror_in_memory(files: Collection[str]) -> Iterator[str]:
    """Empty files in memory: `datasets` matches on file systems alone, and on the hub's each look is a request."""
    import fsspec  # type: ignore[import-untyped]

    memory, root = fsspec.filesystem("memory"), f"/hub-{uuid.uuid4().hex}"
    try:
        memory.pipe({f"{root}/{file}": b"" for file in files})
        yield f"memory:/{root}"
    finally:
        for file in memory.find(root):
            memory.rm_file(file)


def _keep_one_kind(files: Collection[str]) -> tuple[list[str], list[str]]:
    """Files found by name alone, parted: the same data often lies there in two formats."""
    from datasets.load import infer_module_for_data_files_list

    kind = re.compile(_KIND_PATTERNS[infer_module_for_data_files_list(files)[0]], re.IGNORECASE)
    return [file for file in files if kind.search(file)], [file for file in files if not kind.search(file)]


def format_names(names: Collection[str], max_shown: int = 40) -> str:
    """Names one behind the other, the first `max_shown` of them."""
    more = f" and {len(names) - max_shown} more" if len(names) > max_shown else ""
    return ", ".join([*map(str, names)][:max_shown]) + more
