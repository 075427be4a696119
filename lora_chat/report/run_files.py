"""The JSON files of a run, each bounded in size, because a received run may contain anything."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lora_chat.errors import LoraChatError, first_line
from lora_chat.report.values import as_object
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.bounded_files import MEDIUM_FILE_BYTES, read_json_object

_MAX_COMPARISON_BYTES = 64 << 20
"""Largest size, in bytes, of the comparison, which contains all replies."""


@dataclass(frozen=True)
class RecordFile:
    """A JSON file of a run."""

    key: str
    path: Callable[[RunFolder], Path]
    max_bytes: int = MEDIUM_FILE_BYTES


JSON_FILES = (
    RecordFile("plan", lambda run: run.plan),
    RecordFile("versions", lambda run: run.versions),
    RecordFile("data", lambda run: run.statistics),
    RecordFile("audit", lambda run: run.audit),
    RecordFile("estimate", lambda run: run.estimate),
    RecordFile("result", lambda run: run.result),
    RecordFile("comparison", lambda run: run.comparison, _MAX_COMPARISON_BYTES),
    RecordFile("generations", lambda run: run.generations),
    RecordFile("identity", lambda run: run.identity),
)
"""All JSON files of a run that are shown to users."""


@dataclass(frozen=True)
class RunFiles:
    """The readable JSON files of a run."""

    values: Mapping[str, Mapping[str, object]]
    """Content of each readable file, by its key in `JSON_FILES`."""
    damage: Mapping[str, str]
    """Sentence on each file that cannot be read, by the name of the file."""

    def read(self, key: str) -> Mapping[str, object]:
        """Return the content of a JSON file; empty if it is missing or damaged."""
        return self.values.get(key, {})


def read_run_files(run: RunFolder, keys: Collection[str]) -> RunFiles:
    """Read some JSON files of a run. A missing file is left out, and a damaged one is named in `damage`."""
    values: dict[str, Mapping[str, object]] = {}
    damage: dict[str, str] = {}
    for file in JSON_FILES:
        if file.key in keys:
            path = file.path(run)
            content = try_read_file(partial(read_json_object, path, file.max_bytes), path, damage)
            if content is not None:
                values[file.key] = as_object(content)
    return RunFiles(values, damage)


def try_read_file(read: Callable[[], object], path: Path, damage: dict[str, str]) -> object:
    """Return the content of a file, or None if it is missing or damaged; damage is recorded."""
    try:
        return read()
    except FileNotFoundError:
        return None
    except (LoraChatError, OSError) as error:
        damage[path.name] = first_line(error)
        return None
