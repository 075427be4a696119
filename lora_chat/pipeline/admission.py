"""The checks of an adapter before and after it is attached to the base in memory."""

import logging
from collections.abc import Sequence
from pathlib import Path

from lora_chat.errors import IntegrityError, UsageError
from lora_chat.export.parity.reference import ModelReference
from lora_chat.models.adapter import check_adapter_fits
from lora_chat.models.adapter_config import StoredAdapter
from lora_chat.models.base_model import LocalBase, load_meta_model
from lora_chat.models.identity import UNCOVERED_BY_VERSION_1, compute_identity, list_identity_differences
from lora_chat.pipeline.admission_prompts import check_prompts
from lora_chat.pipeline.admitted_model import AdmissionCheck
from lora_chat.pipeline.model_reference import read_reference
from lora_chat.pipeline.open_adapter import OpenAdapter
from lora_chat.pipeline.served_base import SharedBase
from lora_chat.pipeline.served_names import shorten_source

logger = logging.getLogger(__name__)


def check_before_loading(
    opened: OpenAdapter, stored: StoredAdapter, shared: SharedBase, stop_ids: Sequence[int]
) -> tuple[list[AdmissionCheck], ModelReference | None]:
    """Run the checks that need no weights of the base; `stored` has the adapter's weights in memory.

    Return them, and the reference of the adapter if it has one. Raises LoraChatError with the reason for an adapter
    that may not answer.
    """
    if reason := shared.explain_other(opened):
        raise UsageError(
            f"{opened.name} cannot share the base of this server: {reason}. Fix: start a second server for it."
        )
    _check_can_share(opened, shared)
    reference = find_reference(opened)
    checks = [_check_files(opened), _check_base(opened), check_prompts(opened, stop_ids, reference)]
    # Before PEFT changes the model in memory: an adapter that does not fit must not stay in it.
    check_adapter_fits(load_meta_model(shared.base), stored)
    return checks, reference


def find_reference(opened: OpenAdapter) -> ModelReference | None:
    """Return the outputs of the adapted model in the receipt or the run; None without any."""
    if opened.parcel is not None:
        return opened.parcel.receipt.reference
    return read_reference(opened.training_run) if opened.training_run else None


def name_model(base: LocalBase) -> str:
    """Return the name of a base without the folders above it, because clients read it."""
    return shorten_source(base.name) if Path(base.name).is_absolute() else base.name


def _check_can_share(opened: OpenAdapter, shared: SharedBase) -> None:
    """Raise UsageError for an adapter that changes the base itself, because others use the same base.

    PEFT reads the weights for DoRA in a way after which layers in LLM.int8 that have replied once compute nothing more.
    """
    stored = opened.adapter.stored
    parts = {
        "replaces modules or rows": stored.replaces_weights,
        "replaces biases": stored.has_biases,
        "adds tokens": bool(stored.new_token_ids),
        "uses DoRA, which damages 8-bit weights": shared.precision.mode == "8bit"
        and not all(variant.reads_8bit_base for variant in stored.special_variants),
    }
    if changes := [part for part, is_there in parts.items() if is_there]:
        raise UsageError(
            f"{opened.name} {' and '.join(changes)} of the base, which all models of a server share. "
            f"Fix: lora-chat merge {opened.name} --to FOLDER, and serve that folder."
        )


def _check_files(opened: OpenAdapter) -> AdmissionCheck:
    """Return the origin of the files of an adapter, which were checked when it was opened."""
    if opened.parcel is not None:
        receipt = opened.parcel.receipt
        signed = "signed" if receipt.signer else "not signed"
        return AdmissionCheck(
            "files",
            True,
            f"a verified parcel, sha256 {opened.parcel.sha256}: receipt of version {receipt.version}, every digest as "
            f"in the receipt, {signed}",
        )
    if opened.training_run is None:
        origin = (
            "an adapter folder outside of a run" if opened.adapter.stored.identity else "an adapter of another tool"
        )
        return AdmissionCheck("files", None, f"{origin}, without digests of its weights; settings and tensors fit")
    if not opened.made_by_user:
        return AdmissionCheck("files", None, "a run that this user has not signed; settings and tensors fit")
    return AdmissionCheck("files", True, "a run of this user, its files as they were signed")


def _check_base(opened: OpenAdapter) -> AdmissionCheck:
    """Return how the adapter is bound to its base, which was compared when it was opened."""
    adapter = opened.adapter
    identity = adapter.stored.identity
    if identity is None:
        return AdmissionCheck(
            "base",
            None,
            f"it does not name the weights of its training; names and shapes fit {name_model(adapter.base)}",
        )
    current = compute_identity(adapter.base, adapter.tokenizer)
    if changed := list_identity_differences(identity, current, adapter.base):
        return AdmissionCheck("base", None, f"used with --force-base although it has other {' and '.join(changed)}")
    if identity.version == 1:
        return AdmissionCheck("base", True, f"weights and chat template by digest, but not {UNCOVERED_BY_VERSION_1}")
    return AdmissionCheck(
        "base", True, f"weights, config, tokenizer, chat template and stop ids of {name_model(adapter.base)}, by digest"
    )


def raise_refused(check: AdmissionCheck, name: str) -> None:
    """Raise IntegrityError if a check failed."""
    if check.passed is False:
        raise IntegrityError(f"{name} is not served ({check.name}): {check.detail}.")
