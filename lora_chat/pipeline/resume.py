"""The run and the checkpoint from which training continues."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

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
from lora_chat.runs.validation_log import read_validation_log, write_validation_log
from lora_chat.system.console import display_path

logger = logging.getLogger(__name__)

_ADOPT_FLAG = "--adopt"


@dataclass(frozen=True)
class ResumeRequest:
    """The options of `--resume`."""

    run: str | None
    """Run to continue; None means the newest run of the recipe."""
    accepted_changes: Collection[str] = ()
    adopt: bool = False
    """Whether to sign a run of another user, or of an older version, as this user's own."""


def find_run_to_resume(request: ResumeRequest, recipe: Recipe) -> RunFolder | None:
    """Return the requested run; None if the recipe has no run yet. Raise UsageError if the named path is not a run."""
    if request.run is not None:
        return open_run_folder(request.run)
    newest = find_newest_run(recipe)
    if newest is None:
        logger.info("This recipe has no run yet; this is the first.")
        return None
    return open_run_folder(newest.path)


def is_foreign_run(run: RunFolder, request: ResumeRequest) -> bool:
    """Return whether a run was made by another user. Raise ConsentError unless `--adopt` accepts that."""
    reason = find_foreign_reason(run, resuming=not _is_done(run, request))
    if reason and not request.adopt:
        raise ConsentError(
            f"{reason}\nContinuing would train the adapter in its checkpoints. Nothing was changed.", _ADOPT_FLAG
        )
    return reason is not None


def is_finished(run: RunFolder, request: ResumeRequest) -> bool:
    """Return whether a run is complete and no change is requested, and log it."""
    if not _is_done(run, request):
        return False
    logger.info(
        f"{display_path(run.path)} is finished; there is nothing to do. Start a new run without --resume, or train "
        "longer: --resume --set training.epochs=N --accept-change training.epochs"
    )
    return True


def _is_done(run: RunFolder, request: ResumeRequest) -> bool:
    """Return whether a run has a result and no change is accepted."""
    return not request.accepted_changes and run.result.is_file()


def find_resume_point(
    run: RunFolder, identity: Mapping[str, object], request: ResumeRequest
) -> CommittedCheckpoint | None:
    """Return the newest undamaged checkpoint of the same run; None if the run has no checkpoint.

    Damaged checkpoints are moved aside. Raises IntegrityError if all are damaged or belong to another run, ConsentError
    if the checkpoint was written by another user.
    """
    newest, damaged = find_newest_checkpoint(run.checkpoints)
    for checkpoint in damaged:
        logger.info(f"Checkpoint {checkpoint.folder.name} is set aside: {checkpoint.reason}.")
    if newest is None and has_committed_checkpoint(run.checkpoints):
        raise IntegrityError(
            f"{display_path(run.path)} cannot be continued: all of its checkpoints are damaged. Nothing was changed. "
            "Fix: start a new run without --resume."
        )
    if newest is not None and not newest.signed_by_user and not request.adopt:
        raise ConsentError(
            f"The checkpoint {newest.folder.name} of {display_path(run.path)} was written by another user, on "
            "another machine, or by an older version.\nNothing was changed. Delete its folder to continue from the "
            "checkpoint before it.",
            _ADOPT_FLAG,
        )
    if newest is not None:
        _check_validation_log(run, newest, request)
        for change in check_same_run(newest.identity, identity, request.accepted_changes, display_path(run.path)):
            logger.info(f"Accepted: {change}.")
        if is_older_identity(newest.identity):
            logger.info(
                f"{newest.folder.name} was written by an older version; it does not cover {UNCOVERED_BY_VERSION_1}."
            )
        if not newest.signed_by_user:
            newest = sign_checkpoint(newest)
    move_damaged_aside(damaged)
    if newest is None:
        logger.info(f"{display_path(run.path)} has no checkpoint yet; training begins at the first step.")
    else:
        logger.info(f"Continuing {display_path(run.path)} after step {newest.step}.")
    return newest


def _check_validation_log(run: RunFolder, checkpoint: CommittedCheckpoint, request: ResumeRequest) -> None:
    """Raise ConsentError for a log of another user, because it decides which weights are kept; `--adopt` signs it."""
    log = read_validation_log(run.validations)
    rows = [row for row in log.rows if row.step <= checkpoint.step]
    if log.signed_by_user or not any(row.candidates for row in rows):
        return
    if not request.adopt:
        raise ConsentError(
            f"{display_path(run.validations)} was written by another user, on another machine, or was changed.\n"
            "Continuing could keep the adapter in its copies of measured steps. Nothing was changed.",
            _ADOPT_FLAG,
        )
    write_validation_log(run.validations, log.rows)
