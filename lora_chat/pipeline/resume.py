"""Which run is continued, and from which of its checkpoints."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lora_chat.config.recipe import Recipe
from lora_chat.errors import ConsentError, IntegrityError
from lora_chat.models.identity import UNCOVERED
from lora_chat.pipeline.run_identity import check_same_run, covers_less
from lora_chat.runs.checkpoints import Commit, adopt, find_newest, set_aside, was_committed
from lora_chat.runs.origin import why_foreign
from lora_chat.runs.run_folder import RunFolder, newest_run, open_run_folder
from lora_chat.system.console import shown

_ADOPT = "--adopt"


@dataclass(frozen=True)
class ResumeRequest:
    """What `--resume` was given."""

    run: str | None
    """None: the newest of the recipe's name."""
    accepted: Collection[str] = ()
    adopt: bool = False
    """Whether a run of somebody else, or of an older version, is taken as this user's own."""


def find_run(request: ResumeRequest, recipe: Recipe, say: Callable[[str], None]) -> RunFolder | None:
    """The run that is meant; None if there is none yet. Raises RecipeError if what was named is not a run."""
    if request.run is not None:
        return open_run_folder(request.run)
    found = newest_run(recipe)
    if found is None:
        say("No run of this recipe has begun yet; this is the first.")
        return None
    return open_run_folder(found.path)


def is_received(run: RunFolder, request: ResumeRequest) -> bool:
    """Whether a run is not this user's yet. Raises ConsentError unless he takes it as his own."""
    why = why_foreign(run, going_on=not _is_done(run, request))
    if why and not request.adopt:
        raise ConsentError(f"{why}\nGoing on trains further what its checkpoints hold; nothing was changed.", _ADOPT)
    return why is not None


def is_finished(run: RunFolder, request: ResumeRequest, say: Callable[[str], None]) -> bool:
    """Whether nothing is left to do, as nothing is to be changed; says so."""
    if not _is_done(run, request):
        return False
    say(
        f"{shown(run.path)} is finished; nothing was left to do. Train anew without --resume, or train it longer: "
        "--resume --set training.epochs=N --accept-change training.epochs"
    )
    return True


def _is_done(run: RunFolder, request: ResumeRequest) -> bool:
    return not request.accepted and run.result.is_file()


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
    if newest is not None and not newest.own and not request.adopt:
        raise ConsentError(
            f"The checkpoint {newest.folder.name} of {shown(run.path)} was written by somebody else, on another "
            "machine, or by an older version.\nNothing was changed. Delete its folder to go on from the one before it.",
            _ADOPT,
        )
    if newest is not None:
        for change in check_same_run(newest.identity, identity, request.accepted, shown(run.path)):
            say(f"Accepted: {change}.")
        if covers_less(newest.identity):
            say(f"{newest.folder.name} was made by an older version; it does not cover {UNCOVERED}.")
        if not newest.own:
            newest = adopt(newest)
    set_aside(damaged)
    if newest is None:
        say(f"{shown(run.path)} had no checkpoint yet: it begins at the first step.")
    else:
        say(f"Going on with {shown(run.path)} after step {newest.step}.")
    return newest
