"""Which run is continued, and from which of its checkpoints."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lora_chat.config.recipe import Recipe
from lora_chat.errors import ConsentError, IntegrityError
from lora_chat.models.identity import UNCOVERED_BY_VERSION_1
from lora_chat.pipeline.run_identity import check_same_run, is_older_identity
from lora_chat.runs.checkpoints import (
    CommittedCheckpoint,
    find_newest_checkpoint,
    has_committed_checkpoint,
    move_damaged_aside,
    sign_checkpoint,
)
from lora_chat.runs.origin import find_foreign_reason
from lora_chat.runs.run_folder import RunFolder, find_newest_run, open_run_folder
from lora_chat.system.console import display_path

logger = logging.getLogger(__name__)

_ADOPT_FLAG = "--adopt"


@dataclass(frozen=True)
class ResumeRequest:
    """What `--resume` was given."""

    run: str | None
    """None: the newest of the recipe's name."""
    accepted_changes: Collection[str] = ()
    adopt: bool = False
    """Whether a run of somebody else, or of an older version, is taken as this user's own."""


def find_run_to_resume(request: ResumeRequest, recipe: Recipe) -> RunFolder | None:
    """The run that is meant; None if there is none yet. Raises RecipeError if what was named is not a run."""
    if request.run is not None:
        return open_run_folder(request.run)
    found = find_newest_run(recipe)
    if found is None:
        logger.info("No run of this recipe has begun yet; this is the first.")
        return None
    return open_run_folder(found.path)


def is_foreign_run(run: RunFolder, request: ResumeRequest) -> bool:
    """Whether a run is not this user's yet. Raises ConsentError unless he takes it as his own."""
    why = find_foreign_reason(run, resuming=not _is_done(run, request))
    if why and not request.adopt:
        raise ConsentError(
            f"{why}\nGoing on trains further what its checkpoints hold; nothing was changed.", _ADOPT_FLAG
        )
    return why is not None


def is_finished(run: RunFolder, request: ResumeRequest) -> bool:
    """Whether nothing is left to do, as nothing is to be changed; says so."""
    if not _is_done(run, request):
        return False
    logger.info(
        f"{display_path(run.path)} is finished; nothing was left to do. Train anew without --resume, or train it "
        f"longer: "
        "--resume --set training.epochs=N --accept-change training.epochs"
    )
    return True


def _is_done(run: RunFolder, request: ResumeRequest) -> bool:
    return not request.accepted_changes and run.result.is_file()


def find_resume_point(
    run: RunFolder, identity: Mapping[str, Any], request: ResumeRequest
) -> CommittedCheckpoint | None:
    """The newest checkpoint that is whole, of the same run; says which, and why newer ones were set aside.

    None if the run was cut short before its first. Raises IntegrityError if every one is damaged, or it is another run.
    """
    newest, damaged = find_newest_checkpoint(run.checkpoints)
    for one in damaged:
        logger.info(f"Checkpoint {one.folder.name} is set aside: {one.reason}.")
    if newest is None and has_committed_checkpoint(run.checkpoints):
        raise IntegrityError(
            f"{display_path(run.path)} cannot be continued: none of its checkpoints is whole. Nothing was changed; "
            "begin anew without --resume."
        )
    if newest is not None and not newest.signed_by_user and not request.adopt:
        raise ConsentError(
            f"The checkpoint {newest.folder.name} of {display_path(run.path)} was written by somebody else, on another "
            "machine, or by an older version.\nNothing was changed. Delete its folder to go on from the one before it.",
            _ADOPT_FLAG,
        )
    if newest is not None:
        for change in check_same_run(newest.identity, identity, request.accepted_changes, display_path(run.path)):
            logger.info(f"Accepted: {change}.")
        if is_older_identity(newest.identity):
            logger.info(
                f"{newest.folder.name} was made by an older version; it does not cover {UNCOVERED_BY_VERSION_1}."
            )
        if not newest.signed_by_user:
            newest = sign_checkpoint(newest)
    move_damaged_aside(damaged)
    if newest is None:
        logger.info(f"{display_path(run.path)} had no checkpoint yet: it begins at the first step.")
    else:
        logger.info(f"Going on with {display_path(run.path)} after step {newest.step}.")
    return newest
