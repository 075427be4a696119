"""Two runs, or a run and a recipe, opened to show their differences."""

from dataclasses import dataclass
from pathlib import Path

from lora_chat.config.bundled_recipes import find_recipe
from lora_chat.config.load import dump_recipe, read_recipe
from lora_chat.errors import LoraChatError, UsageError, first_line
from lora_chat.report.run_differences import IGNORED_SETTINGS, ComparedRun, DifferenceSection, find_differences
from lora_chat.report.run_files import RunFiles, read_run_files
from lora_chat.report.values import flatten
from lora_chat.runs.run_folder import RunFolder, open_run_folder
from lora_chat.sharing.container import PARCEL_SUFFIX
from lora_chat.system.console import display_path
from lora_chat.system.hashing import digest_file
from lora_chat.system.user_path import expand_user_path

_FILES = ("plan", "versions", "data", "estimate", "result", "comparison", "identity")


@dataclass(frozen=True)
class RunDiff:
    """The differences of two runs."""

    first: str
    second: str
    sections: tuple[DifferenceSection, ...]
    notes: tuple[str, ...]
    """Sentences on files that could not be compared."""

    def as_dict(self) -> dict[str, object]:
        """Return the differences for JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "sections": [section.as_dict() for section in self.sections],
            "notes": list(self.notes),
        }


def diff_runs(first: str, second: str) -> RunDiff:
    """Return the differences of two runs or recipes. Raise UsageError for any other path, RecipeError for a recipe."""
    runs = [_open_run(source) for source in (first, second)]
    notes: list[str] = []
    if all(runs):
        compared = [_read_run(run, notes) for run in runs if run]
    else:
        compared = [
            _read_recipe(run.recipe if run else find_recipe(source), display_path(run.path) if run else source)
            for run, source in zip(runs, (first, second), strict=True)
        ]
        notes.append("Only settings are compared, because a recipe has nothing else.")
    return RunDiff(compared[0].name, compared[1].name, tuple(find_differences(*compared)), tuple(notes))


def _open_run(source: str) -> RunFolder | None:
    """Return the run at a path, or None for a recipe."""
    path = expand_user_path(source)
    if path.suffix == PARCEL_SUFFIX:
        raise UsageError(f"{source} is a parcel. Fix: name two runs, or a run and a recipe.")
    is_recipe = path.is_file() or (not path.exists() and (find_recipe(source) != path or path.suffix == ".yaml"))
    return None if is_recipe else open_run_folder(path)


def _read_recipe(path: Path, name: str) -> ComparedRun:
    """Return the settings of a recipe, in which those that it leaves out have their defaults."""
    return ComparedRun(name, _drop_names(flatten(dump_recipe(read_recipe(path)))))


def _read_run(run: RunFolder, notes: list[str]) -> ComparedRun:
    """Return the values of a run; a file that cannot be read is named in `notes`."""
    files = read_run_files(run, _FILES)
    notes += files.damage.values()
    return ComparedRun(
        display_path(run.path), _drop_names(_read_settings(run, files, notes)), files, _digest_held_out(run, notes)
    )


def _read_settings(run: RunFolder, files: RunFiles, notes: list[str]) -> dict[str, object]:
    """Return the settings of a plan; those that an older version does not have get the default that it used."""
    try:
        return flatten(run.read_plan().model_dump(mode="json"))
    except (LoraChatError, OSError) as error:
        if run.plan.name not in files.damage:
            notes.append(f"Settings of {display_path(run.path)} are compared as written: {first_line(error)}")
        return flatten(files.read("plan"))


def _drop_names(settings: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key not in IGNORED_SETTINGS}


def _digest_held_out(run: RunFolder, notes: list[str]) -> dict[str, object]:
    """Return the SHA-256 of each existing file on which the run is measured."""
    digests: dict[str, object] = {}
    for path in (*run.held_out_files, run.questions, run.general):
        try:
            digests[path.name] = digest_file(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            notes.append(f"{display_path(path)} cannot be read ({error.strerror}).")
    return digests
