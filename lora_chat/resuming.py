"""Which run is continued, and from which of its checkpoints."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lora_chat.console import shown
from lora_chat.errors import IntegrityError
from lora_chat.models.identity import UNCOVERED
from lora_chat.planning.recipe import Recipe
from lora_chat.run_folder import RunFolder, newest_run, open_run_folder
from lora_chat.run_identity import check_same_run, covers_less
from lora_chat.training.checkpoints import Commit, find_newest, set_aside, was_committed


@dataclass(frozen=True)
class ResumeRequest:
    """What `--resume` was given."""

    run: str | None
    """None: the newest of the recipe's name."""
    accepted: Collection[str] = ()


def find_run(request: ResumeRequest, recipe: Recipe, say: Callable[[str], None]) -> RunFolder | None:
    """The run that is meant; None if there is none yet. Raises RecipeError if what was named is not a run."""
    if request.run is not None:
        return open_run_folder(request.run)
    found = newest_run(recipe)
    if found is None:
        say("No run of this recipe has begun yet; this is the first.")
        return None
    return open_run_folder(found.path)


def is_finished(run: RunFolder, request: ResumeRequest, say: Callable[[str], None]) -> bool:
    """Whether nothing is left to do, as nothing is to be changed; says so."""
    if request.accepted or not run.result.is_file():
        return False
    say(
        f"{shown(run.path)} is finished; nothing was left to do. Train anew without --resume, or train it longer: "
        "--resume --set training.epochs=N --accept-change training.epochs"
    )
    return True


def find_resume_point(
    run: RunFolder, identity: Mapping[str, Any], request: ResumeRequest, say: Callable[[str], None]
) -> Commit | None:
    """The newest checkpoint that is whole, of the same run; says which, and why newer ones were set aside.

    None if the run was cut short before its first. Raises IntegrityError if every one is damaged, or it is another run.
    """
    newest, damaged = find_newest(run.checkpoints)
    for one in damaged:
        say(f"Checkpoint {one.folder.name} is set aside: {one.reason}.")
    if newest is None and was_committed(run.checkpoints):
        raise IntegrityError(
            f"{shown(run.path)} cannot be continued: none of its checkpoints is whole. Nothing was changed; "
            "begin anew without --resume."
        )
    if newest is not None:
        for change in check_same_run(newest.identity, identity, request.accepted, shown(run.path)):
            say(f"Accepted: {change}.")
        if covers_less(newest.identity):
            say(f"{newest.folder.name} was made by an older version; it does not cover {UNCOVERED}.")
    set_aside(damaged)
    if newest is None:
        say(f"{shown(run.path)} had no checkpoint yet: it begins at the first step.")
    else:
        say(f"Going on with {shown(run.path)} after step {newest.step}.")
    return newest
