"""The choice whether the base of a run is sharded over its processes."""

import logging

from lora_chat.config.plan import Plan
from lora_chat.errors import RecipeError

logger = logging.getLogger(__name__)


def settle_sharding(plan: Plan, processes: int) -> Plan:
    """Return a plan whose `base.shard` is false for one process; several may keep `auto`, which the planner resolves.

    Raises RecipeError for a base that cannot be sharded.
    """
    shard = plan.base.shard
    if shard is True and processes == 1:
        logger.info("base.shard has no effect, because one process trains: it needs the whole base.")
    if processes == 1:
        return with_sharding(plan, shard=False)
    if shard is True:
        check_sharding(plan)
    return plan


def with_sharding(plan: Plan, *, shard: bool) -> Plan:
    """Return a plan with another value of `base.shard`."""
    return plan.model_copy(update={"base": plan.base.model_copy(update={"shard": shard})})


def check_sharding(plan: Plan) -> None:
    """Raise RecipeError if the base of a plan cannot be sharded."""
    if plan.precision.mode == "8bit":
        raise RecipeError(
            "base.shard: a base in 8 bits cannot be sharded, because bitsandbytes' 8-bit weights do not work with "
            "FSDP. Fix: --set quantization.mode=4bit, --set quantization.mode=none, or --set base.shard=false."
        )
    if plan.adapter.stack is not None:
        raise RecipeError(
            "base.shard: a parent cannot be merged into a sharded base, because the merge needs the whole base in one "
            "process. Fix: merge it before with `lora-chat merge` and train on the merged base, or "
            "--set base.shard=false."
        )
