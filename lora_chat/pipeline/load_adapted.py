"""The base of a run with a new adapter, or with that of its parent."""

import logging
from typing import TYPE_CHECKING

from lora_chat.config.lora_variants import find_initialization
from lora_chat.config.plan import Plan
from lora_chat.models.adapter import attach_adapter, continue_adapter, count_parameters, count_trainable_parameters
from lora_chat.models.base_model import load_base_model, load_meta_model
from lora_chat.models.causality import check_causality
from lora_chat.models.model_errors import explain_model_errors
from lora_chat.models.sharded_base import shard_base
from lora_chat.models.sharded_forwards import check_layer_order, recorded_layers
from lora_chat.models.text_layers import describe_left_out, find_text_layers
from lora_chat.pipeline.parent import Parent
from lora_chat.pipeline.prepare import PreparedRun
from lora_chat.pipeline.run_status import RunProgress
from lora_chat.planning.disk_space import check_disk_space
from lora_chat.planning.validation import count_step_copies
from lora_chat.processes.copies import copy_from_first
from lora_chat.processes.group import current_group
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.console import format_bytes

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def load_adapted_model(
    plan: Plan, prepared: PreparedRun, run: RunFolder, progress: RunProgress, parent: Parent | None
) -> "tuple[PeftModel, int]":
    """Check the disk space, load the base and attach a new adapter or the parent's.

    Return the number of trained parameters, too.
    """
    progress.enter_stage("checking the disk space")
    skeleton = load_meta_model(prepared.base)
    left_out = describe_left_out(find_text_layers(skeleton))
    trainable_parameters = count_trainable_parameters(skeleton, prepared.adapter, prepared.new_ids)
    copies = count_step_copies(plan, len(prepared.train.rows), len(prepared.validation.rows))
    check_disk_space(run.path, trainable_parameters, plan.checkpoint.keep, (run.parent, run.merged_base), copies)
    progress.enter_stage("loading the base")
    is_sharded = plan.base.shard is True
    base_model = load_base_model(prepared.base, plan.precision, to_shard=is_sharded)
    if not is_sharded:
        _check_base(base_model, prepared)
    if parent is not None and not parent.is_merged:
        model = continue_adapter(base_model, parent.stored, plan.adapter.dropout, plan.training.seed)
    else:
        unquantized = plan.precision.model_copy(update={"mode": "none", "device": "cpu"})
        initialization = find_initialization(plan.adapter.initialization)
        needs_original = initialization.fits_residual
        load_original = (lambda: load_base_model(prepared.base, unquantized)) if needs_original else None
        model = attach_adapter(base_model, prepared.adapter, plan.training.seed, load_original, prepared.new_ids)
        if initialization.decomposes_weights:
            copy_from_first([weight for weight in model.parameters() if weight.requires_grad], current_group())
    counts = count_parameters(model)
    if is_sharded:
        progress.enter_stage("sharding the base")
        _shard(model, plan)
        with recorded_layers(model) as layers:
            _check_base(model.get_base_model(), prepared)
        check_layer_order(model, layers)
    if left_out:
        logger.info(left_out)
    logger.info(
        f"LoRA: {counts.trainable_parameters:,} trainable of {counts.all_parameters:,} parameters ({counts.share:.2%})"
    )
    return model, counts.trainable_parameters


def _check_base(model: "PreTrainedModel", prepared: PreparedRun) -> None:
    """Raise UnavailableError unless a base predicts each token of a dialogue from the earlier ones only."""
    known_ids = [token for token in prepared.train.rows[0].input_ids if token not in prepared.new_ids]
    with explain_model_errors(model.config, prepared.base.name, "Reading a dialogue"):
        check_causality(model, known_ids, prepared.base.name)


def _shard(model: "PeftModel", plan: Plan) -> None:
    """Shard the base over the processes, move the model to its device, and log the sizes."""
    import torch

    processes = current_group().size
    on_gpu = plan.precision.device == "cuda"
    sizes = shard_base(
        model, processes, torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    )
    logger.info(
        f"The base is sharded: each of {processes} processes has {format_bytes(sizes.local)} of the "
        f"{format_bytes(sizes.whole)} of its decoder layers, and gathers one layer after the other."
    )
