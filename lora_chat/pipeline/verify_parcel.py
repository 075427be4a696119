"""Verification of a parcel: checks without a base, checks with a base, and repeated measurements."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.errors import DataError, IntegrityError, UnavailableError, UsageError
from lora_chat.evaluation.metrics import format_changes
from lora_chat.export.merge import AdapterBlend
from lora_chat.export.parity.default_prompts import make_default_samples
from lora_chat.export.parity.reference import render_stated_prompts
from lora_chat.export.parity.reference_outputs import compare_with_reference
from lora_chat.export.parity.samples import select_parity_samples
from lora_chat.export.parity.transformers_runner import TransformersRunner
from lora_chat.export.peft import check_adapter_parity
from lora_chat.models.adapter import check_adapter_fits, without_adapter, write_stored_adapter
from lora_chat.models.adapter_config import LoraSettings
from lora_chat.models.base_model import LocalBase, check_weights
from lora_chat.models.identity import UNCOVERED_BY_VERSION_1
from lora_chat.models.stop_tokens import read_stop_ids
from lora_chat.pipeline.compare import compare_models
from lora_chat.pipeline.held_out import EvaluationFiles, prepare_evaluation
from lora_chat.pipeline.open_adapter import OpenAdapter, TrustOptions, find_adapter_base, open_adapter
from lora_chat.pipeline.prepare import PreparedEvaluation
from lora_chat.pipeline.repeat_comparison import (
    check_comparison,
    choose_settings,
    choose_stated_general,
    leave_out_questions,
)
from lora_chat.pipeline.training_overlap import with_known_overlap
from lora_chat.pipeline.verify_lineage import check_parcel_lineage
from lora_chat.sharing.compatibility import Portability, report_portability
from lora_chat.sharing.parcel import Parcel, ParcelCheck, open_parcel
from lora_chat.sharing.receipt import Receipt
from lora_chat.sharing.statement import check_statement
from lora_chat.system.gpu_memory import release_gpu_memory
from lora_chat.system.sanitize import sanitize_line
from lora_chat.system.user_path import expand_user_path

if TYPE_CHECKING:
    import torch

_RECEIPT_METADATA_FIELDS = {"format", "version", "digest"}
"""Fields that describe the format of a receipt, not the adapter."""


@dataclass(frozen=True)
class ParcelVerification:
    """The result of a verification."""

    path: str
    checks: Sequence[ParcelCheck]
    parcel: Parcel | None
    """The parcel; None if it could not be opened."""

    @property
    def passed(self) -> bool:
        """Return whether no check failed."""
        return self.parcel is not None and all(check.passed is not False for check in self.checks)

    def raise_if_refused(self) -> None:
        """Raise IntegrityError with every failed check unless all passed."""
        if not self.passed:
            failed = [f"{check.name}: {sanitize_line(check.found)}" for check in self.checks if check.passed is False]
            raise IntegrityError("\n".join([f"{sanitize_line(self.path)} is refused.", *failed]))

    @property
    def confirmed_fields(self) -> set[str]:
        """Return the fields of the receipt that a check confirmed."""
        return {name for check in self.checks if check.passed for name in check.confirms}

    def as_dict(self) -> dict[str, object]:
        """Return the verification for JSON."""
        checks = [asdict(check) for check in self.checks]
        if self.parcel is None:
            return {"parcel": self.path, "passed": False, "checks": checks}
        receipt = self.parcel.receipt
        stated = _stated_fields(receipt, self.confirmed_fields)
        return {
            "parcel": self.path,
            "passed": self.passed,
            "sha256": self.parcel.sha256,
            "checks": checks,
            "checked_here": sorted(stated & self.confirmed_fields),
            "sender_states": sorted(stated - self.confirmed_fields),
            "portability": [asdict(portability) for portability in _report_portability(receipt)],
            "receipt": receipt.model_dump(mode="json"),
        }


def _stated_fields(receipt: Receipt, confirmed: set[str]) -> set[str]:
    """Return the fields of a receipt that state something."""
    fields = {name for name, value in receipt if value is not None} - _RECEIPT_METADATA_FIELDS
    if "comparison" in confirmed and receipt.comparison and receipt.comparison.facts:
        # The receipt does not contain the questions, so a repeated comparison cannot confirm their share.
        fields.add("comparison.facts")
    if "evaluation" in confirmed and receipt.evaluation and receipt.evaluation.overlap:
        # The digests of the training dialogues stay in the run, so the overlap with them cannot be repeated.
        fields.add("evaluation.overlap")
    return fields


def _report_portability(receipt: Receipt) -> Sequence[Portability]:
    """Return where the adapter of a receipt can be used."""
    return report_portability(LoraSettings.from_section(receipt.adapter), receipt.precision.mode, receipt.architecture)


def verify_parcel(
    path: str,
    evaluation_files: EvaluationFiles,
    trust: TrustOptions,
    *,
    repeat_measurements: bool,
    parents: Sequence[str] = (),
    statement: Path | None = None,
) -> ParcelVerification:
    """Run every check of a parcel; `repeat_measurements` loads the base for the parity check and the comparison.

    `parents` are runs, parcels or folders that its lineage names; `statement` is a file that must be its statement.

    Raises UsageError if the file does not exist, UnavailableError if a requested check needs a missing base.
    """
    if (evaluation_files.data or evaluation_files.questions) and not repeat_measurements:
        raise UsageError("--data and --questions belong to --again: without it nothing is measured.")
    if evaluation_files.questions and not evaluation_files.data:
        raise UsageError(
            "--questions belongs to --data. Fix: add the held-out dialogues of the sender with --data FILE."
        )
    checks: list[ParcelCheck] = []
    try:
        parcel = open_parcel(expand_user_path(path), trust.signer, checks.append)
    except IntegrityError:
        return ParcelVerification(path, checks, None)
    checks += check_parcel_lineage(parcel, parents)
    if statement:
        checks.append(_run_check("statement", lambda: check_statement(parcel, expand_user_path(statement))))
    checks += _check_base(parcel, trust, required=repeat_measurements)
    if repeat_measurements and all(check.passed is not False for check in checks):
        checks += _repeat_measurements(path, evaluation_files, trust)
    return ParcelVerification(path, checks, parcel)


def format_verification(verification: ParcelVerification) -> str:
    """Format the checks as a table, with the receipt and a verdict."""
    marks = {True: "ok", False: "FAILED", None: "-"}
    width = max(len(check.name) for check in verification.checks)
    lines = [
        f"{marks[check.passed]:<7} {check.name:<{width}}  {sanitize_line(check.found)}" for check in verification.checks
    ]
    if verification.parcel is not None:
        lines += ["", *_format_receipt(verification.parcel.receipt, verification.confirmed_fields)]
    lines.append("")
    skipped = [check.name for check in verification.checks if check.passed is None]
    if not verification.passed:
        lines.append("Refused: do not use this parcel.")
    elif skipped:
        lines.append(f"No check failed. Not checked: {', '.join(skipped)}.")
    else:
        lines.append("All checks passed.")
    return "\n".join(lines)


def _format_receipt(receipt: Receipt, confirmed: set[str]) -> list[str]:
    """Format the statements of a receipt, and which of them were checked."""
    base, comparison, data = receipt.base, receipt.comparison, receipt.data
    lines = [f"{receipt.name}: for {base.base} in {receipt.precision.mode}"]
    if base.system is not None:
        lines.append(f"System message: {sanitize_line(base.system, 300)}")
    measured = "no comparison"
    if receipt.evaluation:
        measured = f"{receipt.evaluation.dialogues} held-out dialogues"
        lines.append(
            f"Verdict, as the sender measured it: {sanitize_line(receipt.evaluation.make_verdict().text, 2000)}"
        )
    elif comparison:
        changes = format_changes(comparison.model_dump(exclude={"validation_dialogues"}))
        measured = f"{changes} on {comparison.validation_dialogues} held-out dialogues"
    lines.append(
        f"The sender states: {data.train_dialogues:,} training dialogues, {receipt.training.steps} steps, {measured}"
    )
    if receipt.judgement:
        lines.append(f"The sender states blind votes: {receipt.judgement.text}")
    stated = _stated_fields(receipt, confirmed)
    lines += [f"Its training {parent.title} (sha256 {parent.adapter})" for parent in receipt.lineage or ()]
    lines.append(f"Checked here: {', '.join(sorted(stated & confirmed))}.")
    unconfirmed = f"Stated by the sender only: {', '.join(sorted(stated - confirmed))}."
    if {"comparison", "proof"} & (stated - confirmed):
        unconfirmed += " verify --again repeats the parity check, and with the sender's --data the comparison."
    lines.append(unconfirmed)
    return [*lines, *(f"{p.program:<10} {p.answer:<7} {p.why}" for p in _report_portability(receipt))]


def _check_base(parcel: Parcel, trust: TrustOptions, *, required: bool) -> Iterator[ParcelCheck]:
    """Yield the checks of a parcel against its base. Raise UnavailableError if the base is missing but required."""
    try:
        base = find_adapter_base(parcel.stored, trust, untrusted_name=True)
    except UnavailableError as error:
        if required or trust.base is not None:
            raise
        yield ParcelCheck("base", str(error).splitlines()[0], None)
        return
    bound = _run_check("base", lambda: _check_binding(parcel, trust, base.name), "base")
    yield bound
    if not bound.passed:
        yield ParcelCheck("fits the base", "not checked: this is not the base of its training", None)
        return
    if parcel.receipt.base.version == 1:
        yield ParcelCheck("rest of the base", f"a receipt of version 1 does not cover {UNCOVERED_BY_VERSION_1}", None)
    yield _run_check("fits the base", lambda: _check_weights_fit(parcel, base))


def _run_check(name: str, check: Callable[[], str], *confirms: str) -> ParcelCheck:
    """Return the result of a check that raises IntegrityError if it fails."""
    try:
        return ParcelCheck(name, check(), True, confirms)
    except IntegrityError as error:
        return ParcelCheck(name, str(error), False)


def _check_binding(parcel: Parcel, trust: TrustOptions, base: str) -> str:
    """Check that a base matches the training, and describe the compared parts."""
    trust = TrustOptions(
        base=trust.base or base, compare_template_only=True, signer=trust.signer, recompute_digests=True
    )
    opened = open_adapter(str(parcel.path), trust, loads_model=False)
    has_template, reference = parcel.receipt.chat_template is not None, parcel.receipt.reference
    if reference and not has_template:
        try:
            render_stated_prompts(reference, opened.adapter.tokenizer, opened.system)
        except DataError as error:
            raise IntegrityError(f"the template refuses a prompt of the reference: {error}") from error
    stop_ids = "" if has_template else ", stop ids"
    more = "" if parcel.receipt.base.version == 1 else f", config{stop_ids}, generation settings"
    unchecked = "; the parcel's template was not run, so its stop ids are stated by the sender" if has_template else ""
    return f"weights{more}, tokenizer and chat template are those of the training: {base}{unchecked}"


def _check_weights_fit(parcel: Parcel, base: LocalBase) -> str:
    """Check that the adapter's weights fit the layers of a base."""
    check_adapter_fits(check_weights(base), parcel.stored)
    return "all weights exist with the shapes of the base's layers"


def _repeat_measurements(path: str, evaluation_files: EvaluationFiles, trust: TrustOptions) -> Iterator[ParcelCheck]:
    """Yield the repeated parity check, and the comparison if dialogues are given."""
    trust_options = TrustOptions(
        trust.base, accept_template=trust.accept_template, signer=trust.signer, recompute_digests=True
    )
    opened = open_adapter(path, trust_options)
    prepared = prepare_evaluation(opened, evaluation_files) if evaluation_files.data else None
    yield _run_check("opened by PEFT", lambda: _check_parity(opened, prepared), "proof")
    yield from _check_reference(opened)
    if prepared is None or opened.parcel is None or evaluation_files.data is None:
        yield ParcelCheck("comparison", "not repeated: give dialogues with --data FILE", None)
        return
    prepared = with_known_overlap(prepared, opened)
    receipt = opened.parcel.receipt
    settings = choose_settings(receipt)
    prepared = leave_out_questions(prepared, receipt, Path(evaluation_files.data))
    prepared = replace(prepared, general=choose_stated_general(receipt, prepared))
    report = compare_models(opened.adapter.load(opened.precision), prepared, settings)
    yield check_comparison(report, receipt, Path(evaluation_files.data))


def _check_reference(opened: OpenAdapter) -> Iterator[ParcelCheck]:
    """Yield the comparison of the loaded adapter with the reference in the receipt; nothing without a reference."""
    reference = opened.parcel.receipt.reference if opened.parcel else None
    if reference is None:
        return
    try:
        prompts = render_stated_prompts(reference, opened.adapter.tokenizer, opened.system)
        model = opened.adapter.load(opened.precision)
        scorer = TransformersRunner(model, opened.adapter.tokenizer).logits

        def score_base(ids: Sequence[int], positions: Sequence[int]) -> "torch.Tensor":
            with without_adapter(model):
                return scorer(ids, positions)

        comparison = compare_with_reference(reference, prompts, opened.precision, scorer, score_base)
    except (IntegrityError, DataError) as error:
        yield ParcelCheck("reference", str(error), False)
        return
    yield ParcelCheck("reference", comparison.describe(), comparison.passed, ("reference",))
    release_gpu_memory()


def _check_parity(opened: OpenAdapter, prepared: PreparedEvaluation | None) -> str:
    """Compare the adapter in plain PEFT with the adapted model, and describe the result."""
    stop_ids = tuple(read_stop_ids(opened.adapter.base, opened.adapter.tokenizer))
    blend = AdapterBlend(((opened.adapter, 1.0),), opened.precision, stop_ids)
    samples = select_parity_samples(prepared.validation) if prepared else make_default_samples(blend, opened.system)
    with tempfile.TemporaryDirectory(prefix="lora-chat-") as work_folder:
        write_stored_adapter(opened.adapter.stored, Path(work_folder) / "adapter")
        report = check_adapter_parity(blend, samples, Path(work_folder) / "adapter")
    if report.failures:
        raise IntegrityError("; ".join(report.failures))
    return f"mean KL {report.mean_kl:.1e} on {report.tokens} tokens (the base alone {report.control_kl:.1e})"
