"""The base of a stacked training: the parent is merged into its base, and the merged model is kept in the run."""

import logging
import shutil
from dataclasses import replace

from lora_chat.config.plan import BYTES_BY_DTYPE, Plan
from lora_chat.config.recipe import BaseSection
from lora_chat.data.encoding.chat_template import install_template
from lora_chat.data.encoding.thinking_switch import read_thinking, set_thinking
from lora_chat.errors import DiskFullError, IntegrityError
from lora_chat.export.merge import AdapterBlend, merge_blend
from lora_chat.export.parity.default_prompts import make_default_samples
from lora_chat.export.parity.format import format_parity_line
from lora_chat.export.parity.samples import select_parity_samples
from lora_chat.models.base_model import LocalBase, find_base, load_meta_model, load_tokenizer
from lora_chat.models.bound_adapter import BoundAdapter
from lora_chat.models.identity import compute_identity
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.base_precision import adopt_base_precision, plan_base_precision
from lora_chat.pipeline.install_tokens import install_recipe_tokens, install_trained_tokens
from lora_chat.pipeline.open_adapter import choose_precision
from lora_chat.pipeline.parent import Parent
from lora_chat.pipeline.prepare import PreparedRun, prepare_held_out_files
from lora_chat.runs.checkpoints import has_committed_checkpoint
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.console import display_path
from lora_chat.system.hardware import detect_hardware

logger = logging.getLogger(__name__)

_OTHER_FILES_BYTES = 50_000_000
"""Bytes of tokenizer, configs and report of a merged model."""


def merge_parent(run: RunFolder, plan: Plan, prepared: PreparedRun, parent: Parent) -> tuple[Plan, PreparedRun]:
    """Merge a parent into its base, unless the run has the merged base, and return plan and data for that base.

    The merged model is compared with the parent as `merge` does. Raises DiskFullError before weights load,
    IntegrityError if the parity check fails or if the merged model has another tokenizer or chat template.
    """
    if not (run.merged_base.exists() and has_committed_checkpoint(run.checkpoints)):
        shutil.rmtree(run.merged_base, ignore_errors=True)
        _write_merged_base(run, plan, prepared, parent)
    return use_merged_base(run, plan, prepared)


def use_merged_base(run: RunFolder, plan: Plan, prepared: PreparedRun) -> tuple[Plan, PreparedRun]:
    """Return plan and data for the merged base of a run.

    Raises IntegrityError if the merged model has another tokenizer or chat template than its parent.
    """
    section = BaseSection(name=str(run.merged_base), device=plan.base.device)
    base = find_base(section)
    tokenizer = load_tokenizer(base)
    install_template(tokenizer)
    install_recipe_tokens(plan, tokenizer, read_stop_ids(base, tokenizer))
    set_thinking(tokenizer, read_thinking(prepared.tokenizer))
    before = prepared.identity
    names = "system", "kept_tokens", "new_tokens", "token_rule", "thinking"
    unchanged = {name: getattr(before, name) for name in names}
    identity = compute_identity(base, tokenizer).model_copy(update=unchanged)
    if (identity.tokenizer, identity.chat_template, identity.stops) != (
        before.tokenizer,
        before.chat_template,
        before.stops,
    ):
        raise IntegrityError(f"{base.folder} does not have the tokenizer, chat template and stop ids of its parent.")
    # The merged base is not quantized, even if the files of the base were.
    plain = plan.precision.model_copy(update={"stored": None, "coverage": None})
    plan = plan.model_copy(update={"base": section, "precision": plain})
    precision = plan_base_precision(plan, base)
    merged = replace(prepared, base=base, tokenizer=tokenizer, identity=identity, precision=precision)
    return plan.model_copy(update={"precision": precision}), merged


def _write_merged_base(run: RunFolder, plan: Plan, prepared: PreparedRun, parent: Parent) -> None:
    """Merge a parent into its base and write the model into a run."""
    tokenizer = load_tokenizer(prepared.base)  # that of the run may have new tokens
    tokenizer.chat_template = prepared.tokenizer.chat_template
    install_trained_tokens(parent.stored, prepared.base, tokenizer, run_template=True)
    bound = BoundAdapter(parent.stored, prepared.base, tokenizer)
    hardware = detect_hardware(plan.base.device)
    precision = choose_precision(parent.record.precision, None, hardware)
    precision = adopt_base_precision(precision, prepared.base, hardware, flag="--set quantization.mode=")
    _check_disk_space(run, prepared.base, BYTES_BY_DTYPE[precision.dtype])
    blend = AdapterBlend(((bound, 1.0),), precision, tuple(read_stop_ids(prepared.base, tokenizer)))
    if parent.held_out is not None:
        held_out = prepare_held_out_files(bound, parent.record.max_length, parent.held_out)
        samples = select_parity_samples(held_out.parity_dialogues)
    else:
        logger.info("The parent has no held-out dialogues: the parity check of its merge uses a few default questions")
        samples = make_default_samples(blend, parent.stored.identity.system if parent.stored.identity else None)
    report = merge_blend(blend, samples, run.merged_base)
    logger.info(f"Merged {parent.name} into {display_path(run.merged_base)}. {format_parity_line(report)}")


def _check_disk_space(run: RunFolder, base: LocalBase, bytes_per_value: int) -> None:
    """Raise DiskFullError if the disk of a run is too small for the merged model."""
    parameters = sum(parameter.numel() for parameter in load_meta_model(base).parameters())
    needed, free = bytes_per_value * parameters + _OTHER_FILES_BYTES, shutil.disk_usage(run.path).free
    if free < needed:
        raise DiskFullError(
            f"Not enough disk space in {run.path}: adapter.stack=merge_first keeps the merged base in the run, which "
            f"needs {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free.\n"
            "Fix: free some space, or choose another folder with --set output.directory=DIR."
        )
