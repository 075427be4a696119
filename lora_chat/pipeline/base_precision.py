"""The precision of a plan for the base in use: its own quantization, if its files have one, and the quantized share."""

import logging
from contextlib import suppress

from lora_chat.config.lora_variants import check_base_mode, find_lora_variant
from lora_chat.config.plan import Plan, PrecisionPlan, check_quantization_kernels
from lora_chat.errors import UnavailableError
from lora_chat.models.auto_class import make_meta_model
from lora_chat.models.base_config import BaseConfig, make_config
from lora_chat.models.base_model import LocalBase, load_meta_model
from lora_chat.models.quantization.coverage import describe_coverage, with_coverage
from lora_chat.models.stored_precision import adopt_stored_precision
from lora_chat.system.hardware import Hardware, describe_cpu, detect_hardware

logger = logging.getLogger(__name__)


def adopt_base_precision(
    precision: PrecisionPlan, base: LocalBase, hardware: Hardware, *, flag: str = "--quantization "
) -> PrecisionPlan:
    """Return the precision with the mode of the base's own files, and log it.

    `flag` is the beginning of the option that sets the mode. Raises RecipeError for a mode that the base cannot have,
    or a GPU without kernels for it.
    """
    precision = adopt_stored_precision(precision, base.name, base.folder, flag=flag)
    check_quantization_kernels(precision.mode, hardware)
    return precision


def plan_base_precision(plan: Plan, base: LocalBase) -> PrecisionPlan:
    """Return the precision in which a base is trained, with the share that is quantized, and log both."""
    on_cpu = plan.precision.device == "cpu"  # as in `data`, which needs no working driver
    hardware = describe_cpu() if on_cpu else detect_hardware(plan.base.device)
    precision = adopt_base_precision(plan.precision, base, hardware, flag="--set quantization.mode=")
    _check_variant(plan, precision)
    if precision.mode != "none":
        precision = with_coverage(precision, load_meta_model(base))
    if precision.coverage is not None:
        logger.info(f"{describe_coverage(precision)}.")
    return precision


def adopt_planned_base(plan: Plan, base: BaseConfig, hardware: Hardware) -> Plan:
    """Return the plan with the precision of a base whose weights may not be on this machine."""
    precision = adopt_stored_precision(plan.precision, base.name, base.folder)
    _check_variant(plan, precision)
    check_quantization_kernels(precision.mode, hardware)
    with suppress(UnavailableError):  # Transformers does not know it
        if precision.mode != "none":
            precision = with_coverage(precision, make_meta_model(make_config(base), base.name))
    return plan.model_copy(update={"precision": precision})


def _check_variant(plan: Plan, precision: PrecisionPlan) -> None:
    """Raise UsageError if the variant of the adapter does not work in this precision of the base."""
    variant = find_lora_variant(plan.adapter.variant)
    check_base_mode((variant,), precision.mode, "--set quantization.mode=4bit, or --set adapter.variant=lora")
