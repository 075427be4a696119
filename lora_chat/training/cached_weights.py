"""The dequantized weights that a training has on the GPU beside the quantized ones, as its plan says."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lora_chat.models.quantization.gpu_weight_cache import drop_weight_cache, fill_weight_cache
from lora_chat.models.sharded_base import is_sharded
from lora_chat.processes.group import current_group
from lora_chat.system.gpu_memory import release_unused_memory
from lora_chat.training.training_run import TrainingRun

logger = logging.getLogger(__name__)


@contextmanager
def cached_weights(run: TrainingRun) -> Iterator[TrainingRun]:
    """Cache the dequantized weights of the planned layers until the block ends.

    Yield the run; its plan has no cached layers if they cannot be cached, as those of a sharded base.
    """
    if run.plan.cached_layers and is_sharded(run.model):
        run = run.with_plan(run.plan.model_copy(update={"cached_layers": 0}))
    if run.plan.cached_layers:
        # All processes train one plan, so a card with less memory decides for all.
        reasons = current_group().gather_json(fill_weight_cache(run.model, run.plan.cached_layers))
        if reason := next(filter(None, reasons), ""):
            logger.info(f"Dequantized weights are not cached: {reason}. Training is slower, with the same result.")
            release_cached_weights(run)
            run = run.with_plan(run.plan.model_copy(update={"cached_layers": 0}))
    try:
        yield run
    finally:
        if run.plan.cached_layers:
            release_cached_weights(run)


def release_cached_weights(run: TrainingRun) -> None:
    """Free the cached weights, so that other tensors can take their memory."""
    drop_weight_cache(run.model)
    release_unused_memory()
