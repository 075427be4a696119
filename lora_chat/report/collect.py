"""The files of a run that the report shows. Each is optional, bounded in size, and may be damaged."""

from collections.abc import Mapping
from dataclasses import dataclass

from lora_chat.evaluation.run_judgements import RunJudgements, collect_run_judgements
from lora_chat.report.curves import Curves, read_curves
from lora_chat.report.run_files import read_run_files, try_read_file
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.bounded_files import SMALL_FILE_BYTES, read_text

NO_CURVES = Curves({}, 0, None)
NO_JUDGEMENTS = RunJudgements(())


REPORT_KEYS = ("plan", "versions", "data", "audit", "estimate", "result", "comparison", "generations")
"""Keys of the JSON files that the report reads."""


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
    files = read_run_files(run, REPORT_KEYS)
    damage = dict(files.damage)
    recipe = try_read_file(lambda: read_text(run.recipe, SMALL_FILE_BYTES), run.recipe, damage)
    curves = try_read_file(lambda: read_curves(run.metrics), run.metrics, damage)
    judgements = try_read_file(lambda: collect_run_judgements(run), run.judgements, damage)
    return RunRecord(
        name=run.path.resolve().name,
        values=files.values,
        recipe=recipe if isinstance(recipe, str) else "",
        curves=curves if isinstance(curves, Curves) else NO_CURVES,
        damage=damage,
        judgements=judgements if isinstance(judgements, RunJudgements) else NO_JUDGEMENTS,
    )
