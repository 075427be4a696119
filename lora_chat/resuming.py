"""Which run is continued, and from which of its checkpoints."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_chat.console import shown
from lora_chat.errors import IntegrityError, RecipeError
from lora_chat.planning.recipe import Recipe
from lora_chat.run_folder import RunFolder, newest_run, open_run_folder
from lora_chat.run_identity import check_same_run
from lora_chat.training.checkpoints import Commit, find_newest, set_aside


@dataclass(frozen=True)
class ResumeRequest:
    """What `--resume` was given."""

    run: str | None
    """None: the newest of the recipe's name."""
    accepted: Collection[str] = ()


def find_run(request: ResumeRequest, recipe: Recipe) -> RunFolder:
    """The run that is meant; raises RecipeError if there is none."""
    if request.run is not None:
        return open_run_folder(request.run)
    found = newest_run(recipe)
    if found is None:
        place = Path(recipe.output.directory)
        raise RecipeError(f"There is no run of this recipe in {place} to go on with. Begin one without --resume.")
    return found


def find_resume_point(
    run: RunFolder, identity: Mapping[str, Any], request: ResumeRequest, say: Callable[[str], None]
) -> Commit:
    """The newest checkpoint that is whole, of the same run; says which, and why newer ones were set aside."""
    newest, damaged = find_newest(run.checkpoints)
    for one in damaged:
        say(f"Checkpoint {one.folder.name} is set aside: {one.reason}.")
    if newest is None:
        what = "None of its checkpoints is whole" if damaged else "It had written no checkpoint yet"
        raise IntegrityError(
            f"{shown(run.path)} cannot be continued. {what}. Nothing was changed; begin anew without --resume."
        )
    for change in check_same_run(newest.identity, identity, request.accepted, shown(run.path)):
        say(f"Accepted: {change}.")
    set_aside(damaged)
    say(f"Going on with {shown(run.path)} after step {newest.step}.")
    return newest
