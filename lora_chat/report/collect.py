"""The files of a run that the report shows. Each is optional, bounded in size, and may be damaged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lora_chat.errors import LoraChatError, first_line
from lora_chat.evaluation.run_judgements import RunJudgements, collect_run_judgements
from lora_chat.report.curves import Curves, read_curves
from lora_chat.report.values import as_object
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.bounded_files import MEDIUM_FILE_BYTES, SMALL_FILE_BYTES, read_json_object, read_text

_MAX_COMPARISON_BYTES = 64 << 20
"""Largest size, in bytes, of the comparison, which contains all replies."""
NO_CURVES = Curves({}, 0, None)
NO_JUDGEMENTS = RunJudgements(())


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
)
"""The JSON files that the report reads."""


@dataclass(frozen=True)
class RunRecord:
    """The content of a run for its report."""

    name: str
    """Name of the run folder."""
    values: Mapping[str, Mapping[str, object]]
    """Content of each readable JSON file, by its key in `JSON_FILES`."""
    recipe: str
    """Text of the recipe; empty without one."""
    curves: Curves
    damage: Mapping[str, str]
    """Sentence on each file that cannot be read, by the name of the file."""
    judgements: RunJudgements = NO_JUDGEMENTS
    """Votes of human judges on the adapter."""

    def read(self, key: str) -> Mapping[str, object]:
        """Return the content of a JSON file; empty if it is missing or damaged."""
        return self.values.get(key, {})


def collect_run(run: RunFolder) -> RunRecord:
    """Read the files of a run. A missing file is left out, and a damaged one is named in `damage`."""
    values: dict[str, Mapping[str, object]] = {}
    damage: dict[str, str] = {}
    for file in JSON_FILES:
        path = file.path(run)
        content = _try_read(partial(read_json_object, path, file.max_bytes), path, damage)
        if content is not None:
            values[file.key] = as_object(content)
    recipe = _try_read(lambda: read_text(run.recipe, SMALL_FILE_BYTES), run.recipe, damage)
    curves = _try_read(lambda: read_curves(run.metrics), run.metrics, damage)
    judgements = _try_read(lambda: collect_run_judgements(run), run.judgements, damage)
    return RunRecord(
        name=run.path.resolve().name,
        values=values,
        recipe=recipe if isinstance(recipe, str) else "",
        curves=curves if isinstance(curves, Curves) else NO_CURVES,
        damage=damage,
        judgements=judgements if isinstance(judgements, RunJudgements) else NO_JUDGEMENTS,
    )


def _try_read(read: Callable[[], object], path: Path, damage: dict[str, str]) -> object:
    """Return the content of a file, or None if it is missing or damaged; damage is recorded."""
    try:
        return read()
    except FileNotFoundError:
        return None
    except (LoraChatError, OSError) as error:
        damage[path.name] = first_line(error)
        return None
