"""The part of a run that all processes but the first do: they train and measure, and write nothing into the run."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_chat.config.base import StrictModel
from lora_chat.config.plan import Plan
from lora_chat.config.recipe import Recipe
from lora_chat.errors import IntegrityError
from lora_chat.models.model_errors import explain_model_errors
from lora_chat.models.sharded_forwards import first_process_computes
from lora_chat.models.token_rows import merge_token_rows
from lora_chat.pipeline.audit_run import audit_run
from lora_chat.pipeline.compare import check_longest_dialogue_fits, help_to_compare_models
from lora_chat.pipeline.general_items import take_planned_items
from lora_chat.pipeline.held_out_digests import digest_held_out
from lora_chat.pipeline.load_adapted import load_adapted_model
from lora_chat.pipeline.merge_parent import use_merged_base
from lora_chat.pipeline.parent import Parent
from lora_chat.pipeline.parent_copy import open_parent
from lora_chat.pipeline.prepare import PreparedRun, prepare_run
from lora_chat.pipeline.run_identity import describe_run
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.pipeline.saved_training import make_training_run
from lora_chat.processes.group import current_group
from lora_chat.processes.peers import folder_prefix
from lora_chat.runs.checkpoints import CommittedCheckpoint, DamagedCheckpointError, verify_checkpoint
from lora_chat.runs.create_run import read_library_versions
from lora_chat.runs.run_folder import RunFolder
from lora_chat.training.callbacks.checkpoint import CheckpointPolicy
from lora_chat.training.sft import train_sft

if TYPE_CHECKING:
    from peft import PeftModel


class SharedRun(StrictModel):
    """What the first process has decided before weights load."""

    run: str
    """Absolute path of the run folder."""
    plan: Plan
    """Plan with the base that the recipe names."""
    identity: dict[str, Any]
    held_out: dict[str, str]
    """Digests of the held-out data."""
    planned_items: int | None
    """Number of general items of the first process."""
    checkpoint: str | None
    """Path of the checkpoint that is resumed."""


def share_run(shared: SharedRun | None) -> None:
    """Tell the other processes the run of the first; None if there is nothing to train."""
    current_group().share_json(shared.model_dump(mode="json") if shared else None)


def follow_run(recipe: Recipe, progress: RunProgress) -> None:
    """Take part in the run of the first process: training, validation and the comparison with the base.

    Raises IntegrityError if this process reads other data, or another base, than the first.
    """
    received: Any = current_group().share_json(None)
    if received is None:
        return
    shared = SharedRun.model_validate(received, strict=False)
    run = RunFolder(Path(shared.run))
    if not run.path.is_dir():
        raise IntegrityError(
            f"{run.path} does not exist here, although the first process has made it. "
            "Fix: start all processes in a folder that their machines share."
        )
    progress.run = run
    checkpoint = _open_checkpoint(shared)
    progress.stage = "reading the dialogues"
    plan, parent, prepared = _prepare(recipe, shared, run)
    with tempfile.TemporaryDirectory(prefix=folder_prefix(), ignore_cleanup_errors=True) as folder:
        scratch = _copy_measurements(run, Path(folder))
        current_group().wait()  # before the first process changes the files
        model = _load_and_train(plan, prepared, run, scratch, parent, checkpoint, shared, progress)
        current_group().wait()  # until the first process has saved the adapter
        progress.adapter_saved = True
        progress.stage = "comparing base and adapted"
        merge_token_rows(model)
        with (
            progress.explain_out_of_memory(),
            explain_model_errors(model.get_base_model().config, prepared.base.name, "Evaluation"),
            first_process_computes(model) as computes,
        ):
            if computes:
                help_to_compare_models(model, prepared, plan.evaluation)


def _prepare(recipe: Recipe, shared: SharedRun, run: RunFolder) -> tuple[Plan, Parent | None, PreparedRun]:
    """Read and audit the data, from the caches of the first process, and check that the run is the same."""
    plan = shared.plan
    parent = open_parent(recipe, run)
    # The first process has asked whether the parent's template is accepted.
    prepared, _ = audit_run(prepare_run(plan, parent, accept_template=True), plan)
    general = take_planned_items(prepared.general, shared.planned_items, None)
    prepared = replace(prepared, general=general)
    if parent and parent.is_merged:
        plan, prepared = use_merged_base(run, plan, prepared)
    identity = describe_run(plan, prepared, read_library_versions(), parent)
    pairs = (identity, shared.identity), (digest_held_out(prepared), shared.held_out)
    names = {name for own, first in pairs for name in own.keys() | first.keys() if own.get(name) != first.get(name)}
    if names:
        raise IntegrityError(
            f"This process would train or measure another run than the first: {', '.join(sorted(names))} differs. "
            "Fix: give all machines the same files and packages."
        )
    return plan, parent, prepared


def _open_checkpoint(shared: SharedRun) -> CommittedCheckpoint | None:
    """Return the checkpoint that the first process resumes. Raise IntegrityError if it is not the same here."""
    if shared.checkpoint is None:
        return None
    try:
        return verify_checkpoint(Path(shared.checkpoint))
    except DamagedCheckpointError as error:
        raise IntegrityError(
            f"The checkpoint {shared.checkpoint} cannot be resumed in this process: {error}. "
            "Fix: keep runs in a folder that all machines share."
        ) from None


def _copy_measurements(run: RunFolder, folder: Path) -> RunFolder:
    """Copy metrics and measured steps of a run that is resumed, because training reads and extends them."""
    scratch = RunFolder(folder)
    for name in ("metrics", "validations", "candidates"):
        source, to = getattr(run, name), getattr(scratch, name)
        if source.is_dir():
            shutil.copytree(source, to)
        elif source.is_file():
            shutil.copyfile(source, to)
    return scratch


def _load_and_train(
    plan: Plan,
    prepared: PreparedRun,
    run: RunFolder,
    scratch: RunFolder,
    parent: Parent | None,
    checkpoint: CommittedCheckpoint | None,
    shared: SharedRun,
    progress: RunProgress,
) -> "PeftModel":
    """Load the base with the adapter and take part in the training. Return the model."""
    model, _ = load_adapted_model(plan, prepared, run, progress, parent)
    config, name = model.get_base_model().config, prepared.base.name
    with explain_model_errors(config, name, "Evaluation"):
        check_longest_dialogue_fits(model, prepared.validation, prepared.test)
    progress.stage = "training"
    policy = CheckpointPolicy(scratch.checkpoints, plan.checkpoint, shared.identity, checkpoint)
    training = make_training_run(model, plan, prepared, scratch, policy, progress)
    with explain_model_errors(config, name, "Training"):
        result = train_sft(training)
    if result.signal_number:
        raise progress.stopped(result.signal_number)
    return model
