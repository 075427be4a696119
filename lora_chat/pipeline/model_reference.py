"""The reference of a run: outputs of its adapted model, measured at the end of training or by `pack`."""

import json
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lora_chat.audit.sensitive.scan import find_sensitive
from lora_chat.config.plan import PrecisionPlan
from lora_chat.errors import IntegrityError, first_line
from lora_chat.export.parity.reference import ModelReference
from lora_chat.export.parity.reference_outputs import make_reference
from lora_chat.models.adapter_files import WEIGHTS_NAME
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.open_adapter import OpenAdapter
from lora_chat.pipeline.prepare import PreparedRun
from lora_chat.runs.run_folder import RunFolder
from lora_chat.system.bounded_files import read_json_object
from lora_chat.system.gpu_memory import release_gpu_memory
from lora_chat.system.hashing import digest_file
from lora_chat.system.user_key import pop_record_signature, sign_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_SIGNATURE_PURPOSE = "reference 1"


def keep_reference(run: RunFolder, model: "PreTrainedModel", prepared: PreparedRun, precision: PrecisionPlan) -> None:
    """Measure the reference at the end of training, and write it into the run.

    A failed measurement is only reported, because the adapter is complete without a reference.
    """
    try:
        reference = make_reference(
            model, prepared.tokenizer, prepared.stop_ids, prepared.identity.system, precision, _may_share
        )
    except Exception as error:
        logger.warning(f"The run has no reference by which a server can check the adapter: {first_line(error)}")
        return
    if reference is not None:
        _write_reference(run, reference)


def read_or_measure_reference(opened: OpenAdapter, run: RunFolder) -> ModelReference | None:
    """Return the reference of a run for its receipt. Measure it unless this user did so for the same weights.

    It is written into the run, because packing the run again must give the same bytes.
    """
    with suppress(IntegrityError):  # a reference of other weights, or of another user, is measured again
        if (reference := read_reference(run, signed=True)) is not None:
            return reference
    adapter, precision = opened.adapter, opened.precision
    logger.info("Measuring the reference by which a receiver can check the loaded adapter")
    model = adapter.load(precision)
    stop_ids = read_stop_ids(adapter.base, adapter.tokenizer)
    reference = make_reference(model.eval(), adapter.tokenizer, stop_ids, opened.system, precision, _may_share)
    del model
    release_gpu_memory()
    if reference is not None:
        _write_reference(run, reference)
    return reference


def read_reference(run: RunFolder, *, signed: bool = False) -> ModelReference | None:
    """Return the reference of a run; None if it has none.

    Raises IntegrityError if it is damaged or belongs to other weights, and with `signed` if this user did not measure
    it.
    """
    if not run.reference.is_file():
        return None
    record = read_json_object(run.reference, strict=True)
    if record.get("adapter") != digest_file(run.adapter / WEIGHTS_NAME):
        raise IntegrityError(
            f"{run.reference} belongs to other weights than those in {run.adapter}. Fix: lora-chat pack {run.path} "
            "measures it again, if you changed the weights yourself."
        )
    if signed and not pop_record_signature(_SIGNATURE_PURPOSE, record):
        raise IntegrityError(f"{run.reference} was not measured by this user.")
    try:
        return ModelReference.model_validate_json(json.dumps(record["reference"]))
    except (KeyError, ValidationError) as error:
        raise IntegrityError(f"{run.reference} is damaged: {first_line(error)}") from error


def _write_reference(run: RunFolder, reference: ModelReference) -> None:
    """Write a reference with the digest of the adapter's weights and this user's signature."""
    record: dict[str, object] = {
        "adapter": digest_file(run.adapter / WEIGHTS_NAME),
        "reference": reference.model_dump(mode="json"),
    }
    sign_record(_SIGNATURE_PURPOSE, record)  # without a key `pack` measures it again
    run.write_json(run.reference, record)


def _may_share(reply: str) -> bool:
    """Return whether a reply has neither secrets nor personal data."""
    return not find_sensitive(reply)
