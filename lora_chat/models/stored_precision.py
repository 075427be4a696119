"""The precision of a base whose files are quantized already: its own mode is used, and said."""

import logging
from pathlib import Path

from lora_chat.config.plan import PrecisionPlan
from lora_chat.config.stored_quantization import StoredQuantization
from lora_chat.errors import RecipeError
from lora_chat.models.base_settings import read_lenient_json_object
from lora_chat.models.quantization_checks import find_stored_quantization, find_unquantized_name

logger = logging.getLogger(__name__)


def read_stored_quantization(folder: Path) -> StoredQuantization | None:
    """Return the quantization of the files of a base; None if they are not quantized. Raises UnavailableError."""
    path = folder / "config.json"
    return find_stored_quantization(read_lenient_json_object(path) or {}, str(path))


def adopt_stored_precision(
    precision: PrecisionPlan, name: str, folder: Path | None, *, flag: str = "--set quantization.mode="
) -> PrecisionPlan:
    """Return the precision with the mode of the base's own files, and log which mode that is.

    A base in FP8 or MXFP4 is dequantized, so RecipeError is raised if `precision` names 4 or 8 bits. `flag` is the
    beginning of the option that sets the mode.
    """
    stored = read_stored_quantization(folder) if folder else None
    if stored is None or folder is None:
        return precision
    adopted = with_stored_quantization(precision, stored)
    if stored.mode == "none":
        if precision.mode != "none":
            other = find_unquantized_name(folder)
            raise RecipeError(
                f"{name} is already quantized as {stored.title}; its weights are dequantized when they load, and "
                f"quantization.mode={precision.mode} would round them a second time. Fix: {flag}none, or use "
                + (f"the unquantized base {other}." if other else "the unquantized base.")
            )
        logger.info(f"{name} is already quantized as {stored.title}: its weights are dequantized when they load.")
    elif precision.mode == stored.mode:
        logger.info(f"{name} is already quantized as {stored.title}: its own weights are used.")
    else:
        logger.info(
            f"{name} is already quantized as {stored.title}: its mode {stored.mode} is used in place of "
            f"quantization.mode={precision.mode}."
        )
    return adopted


def with_stored_quantization(precision: PrecisionPlan, stored: StoredQuantization) -> PrecisionPlan:
    """Return the precision of a base whose files have this quantization."""
    is_4bit = stored.mode == "4bit"
    return precision.model_copy(
        update={
            "mode": stored.mode,
            "double_quantization": stored.double_quantization if is_4bit else precision.double_quantization,
            "stored": stored,
        }
    )
